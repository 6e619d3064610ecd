"""`quantize` and `inspect --quantization`, on the built-in model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
from flashjanus.builtin import builtin_folder
from flashjanus.checkpoint.quantizations import QUANTIZATIONS
from flashjanus.cli.quantize import METHODS


def test_quantize_writes_a_checkpoint_that_other_commands_take(cli, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "int8"
    result = cli("quantize", "shapes", folder)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{folder}: int8, 13.0 MB of weights, from 17.9")
    described = cli("inspect", folder, "--json").json
    assert described["problems"] == []
    assert described["dtypes"] == {"bfloat16": 129, "int8": 43, "float32": 43}
    assert described["vae"]["folder"] == str(folder / "vae")
    drawn = cli("generate", "a red circle", "--model", folder, "--steps", "1", "--out", tmp_path / "a.png", "--json")
    assert (drawn.code, drawn.json["quantization"]) == (0, "int8")


@pytest.mark.parametrize(("method", "dtype"), [("int4", "int8"), ("fp8", "float8_e4m3fn")])
def test_quantize_by_other_methods(cli, tmp_path: Path, method: str, dtype: str) -> None:
    folder = tmp_path / method
    result = cli("quantize", "shapes", folder, "--quantization", method)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{folder}: {method}, 13.0 MB of weights, from 17.9")
    described = cli("inspect", folder, "--json").json
    assert (described["problems"], described["sizes"]["quantization"]) == ([], method)
    assert described["dtypes"] == {"bfloat16": 129, dtype: 43, "float32": 43}
    again = cli("quantize", folder, tmp_path / "again")
    assert again.code == 2
    assert f"expected a checkpoint with float weights, got one in {method}" in again.err


def test_quantize_offers_what_a_checkpoint_may_be_stored_in() -> None:
    assert tuple(QUANTIZATIONS) == METHODS


def test_quantize_in_json(cli, tmp_path: Path) -> None:
    value = cli("quantize", "shapes", tmp_path, "--json").json
    assert (value["source"], value["destination"], value["quantization"]) == ("shapes", str(tmp_path), "int8")
    assert value["bytes"] < 0.75 * value["bytes_before"]


def test_quantize_refuses_before_it_reads(cli, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    for arguments, words in (
        (["no/such", tmp_path], "empty or does not exist"),
        (["shapes", ""], "DST is empty"),
        (["no/such", tmp_path / "new", "--quantization", "int3"], "int3"),
    ):
        result = cli("quantize", *arguments)
        assert result.code == 2
        assert words in result.err
        assert result.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_interrupt_leaves_nothing(spawn: Callable[..., Popen[bytes]], tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from flashjanus.checkpoint import write; from flashjanus.cli import main\n"
        "whole = write.Shards.write\n"
        "def half(self, name, tensor):\n"
        "    whole(self, name, tensor)\n"
        "    if 'layers.3' in name: os.kill(os.getpid(), signal.SIGINT)\n"
        "write.Shards.write = half\n"
        "sys.exit(main())"
    )
    process = spawn("-c", program, "quantize", "shapes", tmp_path / "int8", module=False)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"flashjanus: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_inspect_compares_each_linear_with_itself(cli) -> None:
    value = cli("inspect", "shapes", "--quantization", "int8", "--json").json["quantization"]
    linears = {linear["name"]: linear for linear in value["linears"]}
    assert value["method"] == "int8"
    assert len(linears) == 43
    for linear in linears.values():
        assert 0.005 < linear["relative_error"] < 0.01
        assert 0.9999 < linear["cosine"] < 1
    assert linears["language_model.lm_head.weight"]["kind"] == "lm_head"
    out = cli("inspect", "shapes", "--quantization", "int8").out
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "all"]
    assert [line.split()[0] for line in out.splitlines()[-9:]] == kinds
    assert "language_model.model.layers." in out


@pytest.mark.parametrize(("method", "least", "most"), [("int4", 0.07, 0.1), ("fp8", 0.02, 0.03)])
def test_inspect_compares_by_other_methods(cli, method: str, least: float, most: float) -> None:
    value = cli("inspect", "shapes", "--quantization", method, "--json").json["quantization"]
    linears = {linear["name"]: linear["relative_error"] for linear in value["linears"]}
    head = linears.pop("language_model.lm_head.weight")
    assert value["method"] == method
    assert all(least < loss < most for loss in linears.values())
    assert head < (0.01 if method == "int4" else most)


def test_inspect_of_what_has_problems_compares_nothing(cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((builtin_folder() / "config.json").read_bytes())
    result = cli("inspect", tmp_path, "--quantization", "int8", "--json")
    assert result.code == 2
    assert "quantization" not in result.json
