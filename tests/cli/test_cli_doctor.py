"""`flashjanus doctor`, on this machine and on imagined ones."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flashjanus import builtin
from flashjanus.builtin import builtin_folder
from flashjanus.cli.machine import machine_facts
from flashjanus.engine import ops
from flashjanus.engine.device import native
from flashjanus.engine.errors import PlanError

HYPERTHREADED = """\
processor\t: 0
model name\t: Imagined CPU @ 3 GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_2 avx2 amx_bf16 unheard_of

processor\t: 1
model name\t: Imagined CPU @ 3 GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_2 avx2 amx_bf16 unheard_of
"""


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="Imagined H200", major=9, minor=0, total_memory=141 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make one package look absent."""
    version = metadata.version

    def hide(hidden: str) -> None:
        def find(name: str) -> str:
            if name == hidden:
                raise metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(metadata, "version", find)

    return hide


@pytest.mark.usefixtures("no_gpu")
def test_this_machine_runs_the_engine(cli) -> None:
    result = cli("doctor")
    assert (result.code, result.err) == (0, "")
    assert f"torch            {metadata.version('torch')}" in result.out
    assert "gpu              none" in result.out
    assert "\n  device           cpu (" in result.out
    assert "\n  dtype            " in result.out
    for name in ops.all_ops():
        assert f"\n  {name} " in result.out


@pytest.mark.usefixtures("no_gpu")
def test_json(cli) -> None:
    report = cli("doctor", "--json").json
    assert report["ok"] is True
    assert report["device"]["device"] == "cpu"
    assert report["gpus"] == []
    assert report["machine"]["usable_threads"] >= 1
    assert set(report["ops"]) == set(ops.all_ops())
    for name, op in ops.all_ops().items():
        assert report["ops"][name]["implementations"] == list(op.implementations)
        assert report["ops"][name]["chosen"] in op.implementations


@pytest.mark.usefixtures("no_gpu")
def test_without_the_native_module(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: "flashjanus._C is not built: install a compiler")
    result = cli("doctor")
    assert result.code == 0
    assert "note: flashjanus._C is not built: install a compiler" in result.out
    report = cli("doctor", "--json").json
    assert report["native"] == {"missing": "flashjanus._C is not built: install a compiler"}
    assert report["ops"]["flow_update"]["chosen"] == "torch"
    assert "not built" in report["ops"]["flow_update"]["refused"]["native"]


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_listed(cli) -> None:
    assert "gpu              Imagined H200, sm_90, 141.0 GiB" in cli("doctor").out
    report = cli("doctor", "--json").json
    assert report["gpus"] == [{"name": "Imagined H200", "capability": "9.0", "memory_bytes": 141 * 2**30}]


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "abacus"])
def test_a_device_that_cannot_serve(cli, device: str) -> None:
    result = cli("doctor", "--device", device)
    assert result.code == 1
    assert f"error: device '{device}'" in result.out
    assert "use --device auto" in result.out
    assert cli("doctor", "--device", device, "--json").json["ops"] is None


@pytest.mark.usefixtures("no_gpu")
def test_a_required_package_is_missing(cli, without: Callable[[str], None]) -> None:
    without("tokenizers")
    result = cli("doctor")
    assert result.code == 1
    assert "error: tokenizers is not installed\n    pip install tokenizers" in result.out


def test_torch_is_missing(cli, without: Callable[[str], None]) -> None:
    without("torch")
    result = cli("doctor")
    assert result.code == 1
    assert "pip install torch" in result.out
    assert "runs on" not in result.out


@pytest.mark.usefixtures("no_gpu")
def test_the_built_in_model_is_found_or_missed(cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cli("doctor", "--json").json["models"] == {"shapes": str(builtin_folder())}
    monkeypatch.setattr(builtin, "__file__", str(tmp_path / "__init__.py"))
    result = cli("doctor")
    assert result.code == 0  # other models run
    assert "shapes           incomplete" in result.out
    assert "note: built-in model 'shapes': expected all of its files in" in result.out


@pytest.mark.usefixtures("no_gpu")
def test_an_optional_package_is_missing(cli, without: Callable[[str], None]) -> None:
    without("triton")
    result = cli("doctor")
    assert result.code == 0
    assert "triton           not installed (Triton kernels)" in result.out


@pytest.mark.usefixtures("no_gpu")
def test_an_op_that_nothing_serves(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unserved:
        implementations = {"cuda": None}  # noqa: RUF012

        def choose(self, *_: object) -> None:
            raise PlanError("unserved: no implementation serves on cpu: cuda: runs on a CUDA device")

    monkeypatch.setattr(ops, "all_ops", lambda: {"unserved": Unserved()})
    result = cli("doctor")
    assert result.code == 1
    assert "unserved  none" in result.out
    assert "error: unserved: no implementation serves on cpu" in result.out


def test_machine_facts_count_cores_not_threads(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(HYPERTHREADED)
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemAvailable:    900 kB\n")
    facts = machine_facts(tmp_path, tmp_path / "absent")
    assert facts["cpu"] == "Imagined CPU @ 3 GHz"
    assert facts["cores"] == 1
    assert facts["instruction_sets"] == ["sse4_2", "avx2", "amx_bf16"]
    assert (facts["memory_bytes"], facts["available_bytes"]) == (1000 * 1024, 900 * 1024)


def test_machine_facts_honor_a_containers_limit(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemAvailable:    900 kB\n")
    (tmp_path / "memory.max").write_text("2048\n")
    facts = machine_facts(tmp_path, tmp_path)
    assert (facts["memory_bytes"], facts["available_bytes"]) == (2048, 2048)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_facts(tmp_path, tmp_path)["memory_bytes"] == 1000 * 1024


def test_machine_facts_of_arm_and_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n")
    assert machine_facts(tmp_path, tmp_path)["instruction_sets"] == ["asimd", "i8mm", "bf16"]
    facts = machine_facts(tmp_path / "absent", tmp_path / "absent")
    assert facts["memory_bytes"] is None
    assert facts["available_bytes"] is None
    assert facts["instruction_sets"] == []
