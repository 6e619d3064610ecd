"""What the interface's description allows and forbids, tried at random: replies are as described, none is a fault."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from serving_app import SECONDS, Served, served
from serving_clients import CHAT, IMAGES, RESPONSES, until_idle

EXAMPLES = int(os.environ.get("FLASHJANUS_EXAMPLES", "8"))
"""Of each path."""
QUESTION = [{"role": "user", "content": "Is a circle round?"}]
"""Instead of texts and URLs at random, hardly one of which is an image."""


@pytest.fixture(scope="module")
def bounded() -> Iterator[Served]:
    """A server on which nothing takes long."""
    with served(max_steps=3, max_tokens=4, default_tokens=4, max_side=96, max_candidates=3, drain=1.0) as one:
        yield one
        until_idle(one)


@pytest.mark.parametrize("mode", [*GenerationMode])
def test_replies_are_as_described(bounded: Served, mode: GenerationMode) -> None:
    """positive: bodies that the description allows; negative: bodies that it forbids."""
    tried = Counter[tuple[str, str, int]]()
    for operation in schemathesis.openapi.from_url(f"{bounded.url}/openapi.json").get_all_operations():

        @given(case=operation.ok().as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        def one(case: Any) -> None:
            if mode is GenerationMode.POSITIVE and case.path == CHAT:
                case.body["messages"] = QUESTION
            if mode is GenerationMode.POSITIVE and case.path == RESPONSES:
                case.body["input"] = QUESTION
            response = case.call(timeout=SECONDS)
            tried[case.method, case.path, response.status_code] += 1
            case.validate_response(response, excluded_checks=[checks.positive_data_acceptance])

        try:
            one()
        except Unsatisfiable:  # a path without a body has none that is forbidden
            assert mode is GenerationMode.NEGATIVE
    expected = 200 if mode is GenerationMode.POSITIVE else 400
    assert all(tried["POST", path, expected] > 0 for path in (IMAGES, CHAT, RESPONSES))
