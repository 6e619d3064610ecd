"""csrc/cpu through flashjanus.engine.runtime.native, in every instruction set of this machine."""

from __future__ import annotations

import random
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from flashjanus.engine.errors import NativeError
from flashjanus.engine.runtime import native

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))
DTYPES = [torch.float32, torch.bfloat16]
VARIANTS = native.instruction_sets() if native.available() is None else []


def run(kit: SimpleNamespace, case: SimpleNamespace, isa: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    buffers = [kit.Guarded(tensor) for tensor in case.arguments()]
    native.cfg_euler(*(buffer.tensor for buffer in buffers), isa=isa)
    assert all(buffer.intact() for buffer in buffers)
    v, z, guidance, step, steps = (buffer.tensor for buffer in buffers)
    for after, before in ((v, case.v), (guidance, case.guidance), (steps, case.steps)):
        assert torch.equal(after.nan_to_num(), before.nan_to_num())
    return z, step


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", VARIANTS)
def test_equals_the_reference(kit: SimpleNamespace, shape: tuple[int, ...], isa: str, dtype: torch.dtype) -> None:
    case = kit.make_case(*shape, dtype=dtype)
    case.verify(*run(kit, case, isa))


@pytest.mark.parametrize("seed", range(20))
def test_variants_agree_bit_for_bit_on_random_sizes(kit: SimpleNamespace, seed: int) -> None:
    draw = random.Random(seed)
    rows = draw.randint(1, 3)
    sizes = (rows, draw.randint(0, rows), draw.randint(1, 13), draw.randint(1, 40), draw.randint(1, 4))
    case = kit.make_case(*sizes, draw.randint(1, 2), dtype=draw.choice(DTYPES), seed=seed)
    z, step = run(kit, case, None)
    case.verify(z, step)
    for isa in VARIANTS:
        other, advanced = run(kit, case, isa)
        assert torch.equal(z.view(torch.int32), other.view(torch.int32)), isa
        assert torch.equal(step, advanced)


def test_a_token_row_longer_than_the_buffer(kit: SimpleNamespace) -> None:
    case = kit.make_case(2, 1, 2, 700, 4, 2)
    case.verify(*run(kit, case, None))


def test_a_finished_row_keeps_its_bits(kit: SimpleNamespace) -> None:
    case = kit.make_case(3, 3, 3, 5, 4, 2)
    finished = [r for r in range(3) if case.step[r] >= case.steps[r]]
    assert finished
    assert case.v[finished].isnan().all()
    z, step = run(kit, case, None)
    assert torch.equal(z[finished], case.z[finished])
    assert torch.equal(step[finished], case.step[finished])


def test_guidance_one_is_the_conditional_branch(kit: SimpleNamespace) -> None:
    case = kit.make_case(1, 1, 4, 4, 4, 2)
    case.guidance.fill_(1.0)
    guided, _ = run(kit, case, None)
    case.v = case.v[:1].contiguous()
    assert torch.equal(guided, run(kit, case, None)[0])


def test_build_info_names_what_was_built() -> None:
    info = native.build_info()
    assert info["instruction_sets"] == VARIANTS
    assert VARIANTS[0] == "baseline"
    assert set(VARIANTS) <= set(info["instruction_sets_built"])
    assert info["compiler"].split()[1][0].isdigit()
    assert bool(info["cuda"]) == bool(info["cuda_architectures"]) == (native.cuda_available() is None)


BAD_TENSORS = {
    "v in float16": ({"v": torch.half}, "expected v in torch.float32 or torch.bfloat16, got torch.float16"),
    "z in bfloat16": ({"z": torch.bfloat16}, "expected z in torch.float32"),
    "step in int64": ({"step": torch.int64}, "expected step in torch.int32"),
    "guidance in float64": ({"guidance": torch.float64}, "expected guidance in torch.float32"),
    "v on another device": ({"v": "meta"}, "expected v on cpu, got meta"),
    "z on another device": ({"z": "meta"}, "expected CPU tensors, got z on meta"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_refuses_a_wrong_dtype_or_device(kit: SimpleNamespace, name: str) -> None:
    change, message = BAD_TENSORS[name]
    arguments = kit.make_case(2, 1, 3, 3, 4, 2).named()
    arguments.update({key: arguments[key].to(to) for key, to in change.items()})
    with pytest.raises(NativeError, match=message):
        native.cfg_euler(**arguments)


BAD_SHAPES = {
    "a fifth dimension": ({"v": (1, 3, 3, 3, 16)}, r"expected v \[B, H, W, C\*p\*p\]"),
    "an empty grid": ({"v": (3, 0, 3, 16)}, "none empty"),
    "a grid that does not divide z": ({"v": (3, 4, 3, 16)}, r"got v \(3, 4, 3, 16\) and z \(2, 4, 6, 6\)"),
    "too few values a token": ({"v": (3, 3, 3, 8)}, r"expected v \[B, H, W, C\*p\*p\]"),
    "fewer branches than images": ({"v": (1, 3, 3, 16)}, "expected R <= B <= 2R"),
    "more than two branches an image": ({"v": (5, 3, 3, 16)}, "expected R <= B <= 2R"),
    "guidance of another length": ({"guidance": (3,)}, r"expected guidance of shape \(2,\), got \(3,\)"),
    "steps of another rank": ({"steps": (2, 1)}, r"expected steps of shape \(2,\), got \(2, 1\)"),
}


@pytest.mark.parametrize("name", BAD_SHAPES)
def test_refuses_a_wrong_shape(kit: SimpleNamespace, name: str) -> None:
    change, message = BAD_SHAPES[name]
    arguments = kit.make_case(2, 1, 3, 3, 4, 2).named()
    arguments.update({key: torch.zeros(shape, dtype=arguments[key].dtype) for key, shape in change.items()})
    before = arguments["z"].clone()
    with pytest.raises(NativeError, match=message):
        native.cfg_euler(**arguments)
    assert torch.equal(arguments["z"], before)


def test_refuses_strides_misalignment_and_unknown_variants(kit: SimpleNamespace) -> None:
    case = kit.make_case(2, 1, 3, 3, 4, 2)
    v, z, *rows = case.arguments()
    with pytest.raises(NativeError, match=r"expected v contiguous, got strides .*call \.contiguous\(\)"):
        native.cfg_euler(v.transpose(1, 2), z, *rows)
    shifted = torch.zeros(v.numel() + 1)[1:].view(v.shape)
    with pytest.raises(NativeError, match=r"cfg_euler: expected v aligned to 4 elements .* rows=2, unconditional=1"):
        native.cfg_euler(shifted, z, *rows)
    with pytest.raises(NativeError, match="out of baseline, avx2, avx512, got 'neon'"):
        native.cfg_euler(v, z, *rows, isa="neon")
    with pytest.raises(NativeError, match="expected CUDA tensors, got z on cpu"):
        native.cfg_euler_cuda(v, z, *rows)


RAW = {
    "null v": ({"v": 0}, "non-null pointers"),
    "misaligned z": ({"z": 4}, "z aligned to 8 bytes"),
    "misaligned step": ({"step": 2}, "step and steps aligned to 4 bytes"),
    "no rows": ({"rows": 0}, "rows >= 1"),
    "more unconditional rows than rows": ({"unconditional": 2}, "0 <= unconditional <= rows"),
    "negative unconditional": ({"unconditional": -1}, "0 <= unconditional <= rows"),
    "patch 0": ({"patch": 0}, "patch >= 1"),
    "2^31 elements": ({"height": 1 << 15, "width": 1 << 14}, "fewer than 2\\^31 elements"),
    "overflowing sizes": ({"height": 1 << 30, "width": 1 << 30, "channels": 1 << 30}, "fewer than 2\\^31 elements"),
    "a patch beyond the buffer": ({"channels": 4097, "patch": 1}, "<= 4096"),
    "dtype 2": ({"v_dtype": 2}, "v_dtype 0"),
}


@pytest.mark.parametrize("name", RAW)
def test_the_module_checks_raw_arguments(name: str) -> None:
    import flashjanus._C as module

    change, message = RAW[name]
    arguments = {"v": 64, "z": 64, "guidance": 64, "step": 64, "steps": 64, "v_dtype": 0, "rows": 1}
    arguments.update(unconditional=1, height=3, width=3, channels=4, patch=2)
    arguments.update(change)  # the addresses are never read: every case is refused before
    with pytest.raises(ValueError, match=message):
        module.cfg_euler(**arguments)


@pytest.mark.skipif(native.available() is not None or torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_cuda_entry_says_why_it_cannot_run() -> None:
    import flashjanus._C as module

    arguments = {"v": 64, "z": 64, "guidance": 64, "step": 64, "steps": 64, "v_dtype": 0, "rows": 1}
    arguments.update(unconditional=1, height=3, width=3, channels=4, patch=2, stream=0)
    why = "built without|no CUDA kernels" if native.cuda_available() else "the CUDA runtime refused the launch: "
    with pytest.raises(RuntimeError, match=why):
        module.cfg_euler_cuda(**arguments)


class Broken:
    """An import hook: flashjanus._C is there and does not load."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "flashjanus._C":
            raise ImportError("GLIBC_9.99 not found")


@pytest.mark.parametrize("broken", [False, True], ids=["absent", "broken"])
def test_without_the_module_every_entry_says_why(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
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
            native.cfg_euler(*kit.make_case(1, 1, 2, 2, 4, 2).arguments())
        with pytest.raises(NativeError, match=message):
            native.build_info()
    finally:
        native._load.cache_clear()
