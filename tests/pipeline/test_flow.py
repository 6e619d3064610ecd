"""Rows that join a running session, the contract for embedding it in a server."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import InputError
from flashjanus.execution import runner
from flashjanus.execution.flow import FlowPrefix, FlowRequest, FlowSession, Prepared
from flashjanus.sampling.schedule import Sampler
from small_model import LATENT, normal, prompt, relative_error, small_config, small_state

ALONE = 1e-5


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    config = small_config()
    return JanusFlow.from_state_dict(config, small_state(config), device="cpu", dtype="float32")


def request(seed: int, length: int, steps: int, guidance: float) -> FlowRequest:
    return FlowRequest(tuple(prompt(seed, length)[:-1]), Sampler(steps, guidance), normal(seed, *LATENT))


def prefix_of(model: JanusFlow, wanted: FlowRequest) -> FlowPrefix:
    prepared = Prepared(model.runner, 1, int(wanted.schedule.guided), 32, len(wanted.schedule))
    prepared.run([wanted.timed_prompt])
    return prepared.prefix(0)


def join(model: JanusFlow, session: FlowSession, row: int, wanted: FlowRequest) -> None:
    session.join(prefix_of(model, wanted), row, wanted)


def alone(model: JanusFlow, wanted: FlowRequest) -> torch.Tensor:
    return model.sample_latents([[*wanted.prompt, 3]], wanted.noise[None], **asdict(wanted.sampler))[0]


def test_rows_join_and_leave_between_steps(model):
    session = FlowSession(model.runner, rows=3, guided=2, prompt=48, steps=5)
    first, second, third = request(1, 30, 3, 2.0), request(2, 1, 4, 1.0), request(3, 7, 5, 3.0)
    join(model, session, 0, first)
    session.step()
    join(model, session, 2, second)
    session.step()
    session.step()
    assert relative_error(session.z[0], alone(model, first)) <= ALONE
    join(model, session, 0, third)  # in the row that has become free; row 1 stays empty
    session.step()
    session.step()
    assert relative_error(session.z[2], alone(model, second)) <= ALONE
    for _ in range(4):
        session.step()
    assert relative_error(session.z[0], alone(model, third)) <= ALONE
    assert relative_error(session.z[2], alone(model, second)) <= ALONE
    assert not session.z[1].any()


def test_a_branch_without_its_prompt_sees_the_first_token_at_the_same_positions(model):
    session = FlowSession(model.runner, rows=2, guided=2, prompt=32, steps=3)
    join(model, session, 0, request(1, 8, 3, 2.0))
    join(model, session, 1, request(2, 21, 3, 2.0))
    host = session.flow.host
    assert host["kv_start"].tolist() == [32 - 8, 32 - 21, 31, 31]
    assert host["positions"][:, 0].tolist() == [9, 22, 9, 22]
    keys, filled = session.flow.states["k_cache"], [8, 21, 1, 1]
    assert [int(keys[0, row, :32].flatten(1).any(1).sum()) for row in range(4)] == filled


def test_a_prompt_prepared_otherwise_than_its_row_is_refused(model):
    session = FlowSession(model.runner, rows=2, guided=1, prompt=32, steps=3)
    with pytest.raises(
        InputError, match=r"row 0: expected a prompt of 3 tokens .*, with an unconditional branch; .* without a branch"
    ):
        session.join(prefix_of(model, request(1, 3, 3, 1.0)), 0, request(1, 3, 3, 2.0))
    with pytest.raises(InputError, match=r"row 0: expected a prompt of 4 tokens .* got one of 3 tokens for 3 steps"):
        session.join(prefix_of(model, request(1, 3, 3, 2.0)), 0, request(1, 4, 3, 2.0))
    with pytest.raises(InputError, match=r"row 0: .* prepared for at least 3 steps.*; got one of 3 tokens for 2 steps"):
        session.join(prefix_of(model, request(1, 3, 2, 2.0)), 0, request(1, 3, 3, 2.0))
    with pytest.raises(InputError, match=r"row 0: expected a request of up to 32 prompt tokens and 3 steps, got 3 tok"):
        session.join(prefix_of(model, request(1, 3, 4, 2.0)), 0, request(1, 3, 4, 2.0))


def test_the_least_recently_used_memory_goes_first(model, monkeypatch):
    monkeypatch.setattr(runner, "IDLE_BYTES", 1)
    for steps in (1, 2, 3):
        model.sample_latents([prompt(1, 4)], normal(1, 1, *LATENT), num_inference_steps=steps)
    ((make, *bucket),) = model.runner._idle  # the last used stays, whatever its size
    assert (make, bucket[3]) == (FlowSession, 3)
    monkeypatch.setattr(model.runner, "_reserved", {})
    monkeypatch.setattr(model.runner, "_reserved_sum", 0)
    for nbytes in (1 << 40, 1):  # all that anybody asked for
        model.runner.reserve({("bucket", nbytes): nbytes})
    for steps in (1, 2, 3):
        model.sample_latents([prompt(1, 4)], normal(1, 1, *LATENT), num_inference_steps=steps)
    assert sum(made is FlowSession for made, *_ in model.runner._idle) == 3


def test_idle_memory_changes_hands_under_the_lock(model, monkeypatch):
    """Without it two requests may get one memory, or count what a third one drops."""

    class Watched(OrderedDict):
        def __setitem__(self, *args):
            held.append(runner._LOCK.held)
            super().__setitem__(*args)

        def pop(self, *args):
            held.append(runner._LOCK.held)
            return super().pop(*args)

    class Lock:
        held = False

        def __enter__(self):
            self.held = True

        def __exit__(self, *exception):
            self.held = False

    held = []
    monkeypatch.setattr(runner, "_LOCK", Lock())
    monkeypatch.setattr(model.runner, "_idle", Watched())
    model.prefixes.clear()
    model.sample_latents([prompt(1, 4)], normal(1, 1, *LATENT), num_inference_steps=1)
    assert len(held) >= 4
    assert all(held)


@pytest.mark.parametrize(
    ("wanted", "row", "words"),
    [
        (request(1, 17, 2, 2.0), 0, ["row 0", "16 prompt tokens", "17 tokens"]),
        (request(1, 3, 6, 2.0), 0, ["row 0", "5 steps", "6 steps"]),
        (request(1, 3, 2, 2.0), 1, ["row 1", "without guidance", "guidance 2.0"]),
    ],
)
def test_a_request_that_does_not_fit_a_row_is_refused(model, wanted, row, words):
    session = FlowSession(model.runner, rows=2, guided=1, prompt=16, steps=5)
    with pytest.raises(InputError) as error:
        join(model, session, row, wanted)
    assert all(word in str(error.value) for word in words), str(error.value)
