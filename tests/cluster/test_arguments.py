"""What `serve run flashjanus.cluster.app:build NAME=VALUE` takes, without a cluster."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from flashjanus import JanusFlow
from flashjanus.cluster.arguments import GRANTED, Arguments
from flashjanus.errors import InputError
from flashjanus.serving.http.settings import Settings
from pydantic import ValidationError


def test_every_choice_of_a_model_is_an_argument() -> None:
    """What the command line of `flashjanus serve` may set, and not revision, which it does not have."""
    options = set(signature(JanusFlow.from_pretrained).parameters) - {"source", "revision"}
    assert set(Arguments().choices()) == options
    assert Arguments(adapters={"ink": "styles/ink"}).choices()["adapters"] == {"ink": "styles/ink"}


def test_all_that_a_server_grants_is_an_argument_but_its_keys() -> None:
    assert {*GRANTED, "keys"} == {one.name for one in fields(Settings)}
    assert Arguments().settings() == Settings()


def test_texts_of_a_command_line_become_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLASHJANUS_API_KEYS", "s3cret")
    (tmp_path / "keys").write_text("two\n")
    given = dict(max_replicas="4", names="a,b", max_tokens="99", drain="2.5", api_keys=str(tmp_path / "keys"))
    arguments: Any = Arguments.model_validate(given)
    assert arguments.max_replicas == 4
    settings = arguments.settings()
    assert (settings.names, settings.max_tokens, settings.drain) == (("a", "b"), 99, 2.5)
    assert set(settings.keys) == {"s3cret", "two"}
    assert "s3cret" not in repr(arguments)
    with pytest.raises(InputError):
        Arguments(api_keys=tmp_path / "gone").settings()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (dict(modle="shapes"), "modle"),
        (dict(keys="secret"), "keys"),
        (dict(min_replicas=3, max_replicas=2), "max_replicas"),
        (dict(max_ongoing_requests=0), "max_ongoing_requests"),
        (dict(numerics="fast"), "numerics"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused_by_name(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Arguments.model_validate(given)
