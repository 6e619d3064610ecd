"""The format of docs/adding-a-format.md: its file and a line of another, and a model draws with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.checkpoint import Target
from flashjanus.checkpoint.quantizations import QUANTIZATIONS, Quantization
from flashjanus.engine.errors import SchemaError
from flashjanus.engine.formats import FORMATS, Format, Weight
from flashjanus.engine.ops import get_op
from flashjanus.model import Policy
from op_check import check, make_call, specs_of

PAGE = Path(__file__).resolve().parents[2] / "docs/adding-a-format.md"
FILE = re.compile(r"^```\w+ title=\"(\S+)\"\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = dict(FILE.findall(PAGE.read_text(encoding="utf-8")))
CASES = [dict(m=1, k=32, n=16), dict(m=5, k=36, n=7, bias=True), dict(m=3, k=64, n=96, norm=True, act="gated_silu")]


@pytest.fixture
def int6(monkeypatch: pytest.MonkeyPatch) -> Iterator[Format]:
    source, line = FILES.values()
    monkeypatch.setattr("flashjanus.engine.formats.base.FORMATS", FORMATS)
    module = ModuleType("flashjanus.engine.formats.int6")
    module.__package__ = "flashjanus.engine.formats"
    exec(compile(source, "int6.py", "exec"), module.__dict__)
    for name, method in eval("{" + line + "}", {"Quantization": Quantization}).items():
        monkeypatch.setitem(QUANTIZATIONS, name, method)
    yield FORMATS["int6"]
    del FORMATS["int6"]


def test_a_format_is_its_file_and_a_line() -> None:
    assert list(FILES) == ["engine/formats/int6.py", "python/flashjanus/checkpoint/quantizations.py"]


def test_its_cases_meet_the_reference(int6: Format) -> None:
    op = get_op("linear")
    for case in CASES:
        call = make_call(op, {**case, "of": "int6"}, torch.bfloat16, False)
        assert op.schema.infer("linear", specs_of(call), call.attrs)
        check(op, call, ["torch"])
        for name in ("amx", "native"):
            assert op.implementations[name].refuses(torch.device("cpu"), specs_of(call), call.attrs) is not None
    narrow = make_call(op, dict(m=1, k=32, n=16, of="int6"), torch.bfloat16, False)
    with pytest.raises(SchemaError, match=r"expected in format int6 as u8\[16, 24\] and f32\[16\]"):
        op.schema.bind("linear", [*specs_of(narrow)[:3], None, None, None, None], narrow.attrs)


def test_it_loses_more_than_8_bits_and_less_than_4(int6: Format) -> None:
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
    losses = [FORMATS[name].loss(weight).relative for name in ("int8", "int6", "int4")]
    assert losses == sorted(losses)
    assert 0.01 < losses[1] < 0.04
    assert int6.loss(torch.zeros(4, 8)).relative == 0


def test_a_model_keeps_it_and_draws_with_it(int6: Format) -> None:
    kept = Policy.of(torch.bfloat16, tiled=True, quantization="int6").kept(Target("llm.0.o", (96, 64), "matrix", ()))
    assert isinstance(kept, Weight)
    packed = kept.pack(torch.randn(96, 64))
    assert {name: (t.shape, t.dtype) for name, t in packed.items()} == {
        "llm.0.o": ((96, 48), torch.uint8),
        "llm.0.o.scale": ((96,), torch.float32),
    }
    assert kept.by_rows(packed)["llm.0.o"].dtype is torch.int8
    exact, model = (JanusFlow.from_pretrained("shapes", dtype="float32", quantization=q) for q in (None, "int6"))
    assert "linear/int6" in {node.work for node in model.plan("flow_step").nodes}
    drawing = dict(num_inference_steps=2, seed=3, output_type="pt")
    pictures = [m.generate_image("a red circle", **drawing).images for m in (exact, model)]  # type: ignore[arg-type]
    assert 0 < (pictures[0] - pictures[1]).abs().mean() < 0.03
