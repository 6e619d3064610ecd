"""--adapter: which adapters are loaded, and who uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.cli.app import build_parser
from flashjanus.cli.options import choices
from small_adapter import write_adapter
from untrained_model import write_untrained_model


@pytest.mark.parametrize(
    ("given", "name", "path"),
    [("styles/ink", "ink", "styles/ink"), ("a=styles/ink", "a", "styles/ink"), ("who/ink", "ink", "who/ink")],
)
def test_one_adapter_draws_and_answers(cli, model, tmp_path: Path, given: str, name: str, path: str) -> None:
    assert cli("generate", "a", "--seed", "1", "--adapter", given, "--out", tmp_path).code == 0
    (tmp_path / "a.png").write_bytes((tmp_path / "a-1.png").read_bytes())
    assert cli("ask", tmp_path / "a.png", "b", "--adapter", given).code == 0
    loaded = [options["adapters"] for call, options in model.calls if call == "from_pretrained"]
    used = [options["adapter"] for call, options in model.calls if call in ("stream_images", "chat")]
    assert (loaded, used) == ([{name: path}] * 2, [name] * 2)


def test_a_server_loads_several() -> None:
    args = build_parser().parse_args(["serve", "--adapter", "a=x/y", "--adapter", "z"])
    assert choices(args)["adapters"] == {"a": "x/y", "z": "z"}
    assert "adapters" not in choices(build_parser().parse_args(["serve"]))


@pytest.mark.parametrize("flags", [[], ["--served-name", "mine"], ["--ray", "local"]])
def test_a_server_refuses_an_adapter_of_the_models_own_name(cli, flags: list[str]) -> None:
    name = "mine" if "mine" in flags else "shapes"
    result = cli("serve", "--adapter", f"styles/{name}", *flags)
    assert result.code == 2
    assert "--adapter: expected a name other than the model's, by which requests ask for it" in result.err
    assert f"got {name!r}; give NAME=PATH" in result.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["=x"], "--adapter: expected NAME=PATH, each with a name of its own, got '=x'"),
        (["a="], "--adapter: expected NAME=PATH, each with a name of its own, got 'a='"),
        (["a=x", "b=y"], "--adapter: expected at most 1, got 2"),
    ],
)
def test_adapters_that_are_none(cli, model, given: list[str], said: str) -> None:
    flags = [word for one in given for word in ("--adapter", one)]
    result = cli("generate", "a", *flags)
    assert (result.code, said in result.err) == (2, True)


def test_a_picture_of_an_adapter(cli, tmp_path: Path) -> None:
    write_untrained_model(tmp_path / "model", layers=1)
    write_adapter(tmp_path / "ink", JanusFlowConfig.from_file(tmp_path / "model/config.json").language, rank=2)
    command = ["generate", "a circle", "--seed", "1", "--steps", "1", "--model", tmp_path / "model", "--json"]
    plain = cli(*command, "--out", tmp_path / "plain.png")
    drawn = cli(*command, "--out", tmp_path / "drawn.png", "--adapter", tmp_path / "ink")
    assert (plain.code, drawn.code) == (0, 0), drawn.err
    assert json.loads(drawn.out)["adapter"] == str(tmp_path / "ink")
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "drawn.png").read_bytes()
