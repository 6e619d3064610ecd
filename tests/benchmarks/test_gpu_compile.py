"""Compiling ahead: every Triton kernel of the released plans, launching none, and found again by a launch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flashjanus.engine.ops import all_ops

pytest.importorskip("triton")
from gpu_stages import compile
from released_plans import released_plans
from triton_stand_in import launched


def test_what_is_compiled_ahead_is_found_by_a_launch(tmp_path, capsys):
    with launched(tmp_path) as launches:
        nodes = list(compile.forms())
        released = {node.op for plan in released_plans() for node in plan.nodes}
        ours = {op.name for op in all_ops().values() if "triton" in op.implementations}
        assert {node.op for node in nodes} == ours & released
        compile.part(0, 1)
        assert launches == [], "nothing ran"
        said = capsys.readouterr().out
        assert said == f"compiled {len(nodes)}\n"
        before = set(tmp_path.iterdir())
        for node in nodes[:: len(nodes) // 8]:
            tensors = map(compile.memory, (*node.inputs, *node.outputs))
            all_ops()[node.op].implementations["triton"].run(*tensors, **node.attrs)
        assert len(launches) >= 8
        assert set(tmp_path.iterdir()) == before


def test_parts_share_the_work_and_tell_of_failures(tmp_path, capsys, monkeypatch):
    def broken(call: object) -> None:
        raise RuntimeError("no such\ninstruction")

    with launched(tmp_path):
        forms = list(compile.forms())[:6]
        monkeypatch.setattr(compile, "forms", lambda: iter(forms))
        compile.part(1, 3)
        assert capsys.readouterr().out == "compiled 2\n"
        name = forms[0].op
        it = all_ops()[name].implementations["triton"]
        monkeypatch.setitem(all_ops()[name].implementations, "triton", replace(it, body=broken))
        compile.part(0, 6)
        assert capsys.readouterr().out == f"failed {name}: RuntimeError: no such instruction\ncompiled 0\n"


def test_processes_are_added_up(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "part = int(sys.argv[sys.argv.index('--part') + 1])\n"
        "print('compiled', part + 1)\n"
        "if part == 1: sys.exit('failed rms_norm: it is late')\n"
    )
    found = compile.in_parallel(program, float("inf"), 2)
    assert (found["processes"], found["compiled"], found["failures"]) == (2, 3, ["failed rms_norm: it is late"])
    assert found["unfinished"] == ["compiled 2\nfailed rms_norm: it is late"]
