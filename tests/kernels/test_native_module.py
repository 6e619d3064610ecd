"""flashjanus._C: what it says of itself, and what is said where it cannot run."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from flashjanus.engine.device import native
from flashjanus.engine.errors import NativeError

built = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))


@built
def test_build_info_names_what_was_built() -> None:
    info = native.build_info()
    assert info["instruction_sets"] == native.instruction_sets()
    assert native.instruction_sets()[0] == "baseline"
    assert set(native.instruction_sets()) <= set(info["instruction_sets_built"])
    assert info["compiler"].split()[1][0].isdigit()
    assert bool(info["cuda"]) == bool(info["cuda_architectures"]) == (native.cuda_available() is None)


@built
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_cuda_entry_says_why_it_cannot_run() -> None:
    import flashjanus._C as module

    arguments = dict(
        v=64, z=64, history=64, kept=64, schedule=64, step=64, steps=64, v_dtype=0, rows=1, unconditional=1
    )
    arguments.update(evaluations=1, height=3, width=3, channels=4, patch=2, threads=1, stream=0)
    why = "built without|no CUDA kernels" if native.cuda_available() else "the CUDA runtime refused the launch: "
    with pytest.raises(RuntimeError, match=why):
        module.flow_update_cuda(**arguments)


class Broken:
    """An import hook: flashjanus._C is there and does not load."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "flashjanus._C":
            raise ImportError("GLIBC_9.99 not found")


@pytest.mark.parametrize("broken", [False, True], ids=["absent", "broken"])
def test_without_the_module_every_entry_says_why(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    if broken:
        monkeypatch.delitem(sys.modules, "flashjanus._C", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    else:
        monkeypatch.setitem(sys.modules, "flashjanus._C", None)
    message = r"GLIBC_9\.99 not found\)\. Reinstall" if broken else "not built: .* reinstall"
    native._load.cache_clear()
    try:
        assert re.search(message, str(native.available()))
        assert native.cuda_available() == native.available()
        with pytest.raises(NativeError, match=message):
            native.run("silu_mul", x=torch.zeros(2, 4), y=torch.zeros(2, 2))
        with pytest.raises(NativeError, match=message):
            native.build_info()
    finally:
        native._load.cache_clear()
