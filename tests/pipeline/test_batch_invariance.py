"""A row's bits depend on the row alone: neither on who is beside it, nor on where it stands, nor on the bucket's sizes.

The random histories are of the built-in model's sizes: while what serves depended on the batch, most of those with
several rows gave other latents.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.device import native
from flashjanus.engine.ops import Call, get_op
from flashjanus.engine.ops.linear import MAX_ROWS
from flashjanus.execution.buckets import padded
from flashjanus.execution.flow import FlowRequest, FlowSession, Prepared
from flashjanus.execution.text import TextRequest, TextSession
from flashjanus.sampling.schedule import Sampler
from flashjanus.scheduling import calls
from op_check import specs_of
from small_model import normal, prompt, relative_error

ROOM = 64
"""Most tokens of a prompt, and slots in front of an answer."""
F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8", "official"])
def model(request: pytest.FixtureRequest, untrained_folder: Path) -> JanusFlow:
    """The last of them rounds as the official code does, by torch's implementations for the most part."""
    options = {
        "float32": dict(dtype="float32"),
        "bfloat16": dict(dtype="bfloat16"),
        "int8": dict(dtype="bfloat16", quantization="int8"),
        "official": dict(dtype="bfloat16", numerics="official"),
    }
    return JanusFlow.from_pretrained(untrained_folder, device="cpu", **options[request.param])


def drawn(rng: random.Random, model: JanusFlow) -> FlowRequest:
    """An image request of any length of prompt, with and without guidance and what saves work."""
    sampler = Sampler(
        num_inference_steps=rng.randint(1, 4),
        guidance_scale=rng.choice([1.0, 2.0, 3.5]),
        solver=rng.choice(["euler", "ab2"]),
        guidance_rescale=rng.choice([0.0, 0.0, 0.5]),
        uncond_every=rng.choice([1, 1, 2]),
        step_cache=rng.choice([1, 1, 2]),
    )
    size = model.config.latent_size
    ids, noise = prompt(rng.randrange(1000), rng.randint(1, ROOM)), normal(rng.randrange(1000), 4, size, size)
    return FlowRequest(tuple(ids[:-1]), sampler, noise)


def together(rng: random.Random, model: JanusFlow, requests: list[FlowRequest]) -> list[torch.Tensor]:
    """The latents of each from one bucket that holds more than they need, which they join at different times."""
    rows = sorted(requests, key=lambda request: not request.schedule.guided)
    guided = sum(request.schedule.guided for request in requests)
    session = FlowSession(
        model.runner,
        rows=len(rows),
        guided=rng.randint(guided, len(rows)),
        prompt=padded(max(len(request.prompt) for request in rows), (16,)) + 16 * rng.randint(0, 2),
        steps=max(len(request.schedule) for request in rows) + rng.randint(0, 2),
        skips=True,
        caches=any(request.schedule.caches for request in rows),
    )
    late = [rng.randint(0, 2) for _ in rows]
    for step in range(max(start + len(request.schedule) for start, request in zip(late, rows, strict=True))):
        for row in (row for row, start in enumerate(late) if start == step):
            length, steps = len(rows[row].prompt), len(rows[row].schedule)
            prepared = Prepared(model.runner, 1, int(row < session.guided), padded(length, (16,)), steps)
            prepared.run([rows[row].timed_prompt])
            session.join(prepared.prefix(0), row, rows[row])
        session.step()
    return [session.z[rows.index(request)].float() for request in requests]


@pytest.mark.parametrize("seed", range(8))
def test_latents_do_not_depend_on_the_neighbors(model: JanusFlow, seed: int) -> None:
    rng = random.Random(seed)
    requests = [drawn(rng, model) for _ in range(1 + seed % 6)]
    for request, z in zip(requests, together(rng, model, requests), strict=True):
        (alone,) = calls.draw(model.shared, [request]).result
        if model.dtype is F32:  # MKL cuts the sums of one product at a time among threads, by the rows that it has
            assert relative_error(z, alone) <= 1e-5
        else:
            assert torch.equal(z, alone), request.sampler


def decoded(
    model: JanusFlow, row: int, rows: int, room: int, start: dict[str, torch.Tensor] | None = None
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The logits of `row` of `rows` conversations as three tokens are decoded, and what it began with.

    With `start`, what another conversation began with becomes its own.
    """
    others = [TextRequest(tuple(prompt(seed, 3 + 5 * seed % 40))) for seed in range(rows)]
    others[row] = TextRequest(tuple(prompt(100, 23)))
    session = TextSession(model.runner, rows, ROOM, ROOM + room, 1, room)
    session.start(others, None)
    made = {
        name: (t[:, row, :ROOM] if t.dim() == 5 else t[row]).clone()
        for name, t in session.states.items()
        if name in ("k_cache", "v_cache", "token")
    }
    for name, value in (start or {}).items():
        if value.dim():
            session.states[name][:, row, :ROOM] = value
        else:
            session.states[name][row] = value
    logits = []
    for _ in range(3):
        session.step()
        logits.append(session.decode.outputs["logits"][row].float().clone())
    return logits, made


@pytest.mark.parametrize(("row", "rows", "room"), [(1, 2, 4), (3, 4, 70), (2, 5, 4), (0, 8, 9), (16, 17, 4)])
def test_logits_do_not_depend_on_the_neighbors(model: JanusFlow, row: int, rows: int, room: int) -> None:
    alone, start = decoded(model, 0, 1, 4)
    beside, _ = decoded(model, row, rows, room, start)
    linears = [n for n in model.plan("decode_step", rows=rows, prompt_tokens=1).nodes if n.op == "linear"]
    if not any(n.inputs[4] is not None for n in linears):
        assert all(map(torch.equal, alone, beside))
        return
    # int8 without tiles, on a CPU with VNNI: inputs are in 8 bits too from five rows on
    assert rows > MAX_ROWS
    assert max(map(relative_error, beside, alone)) <= 0.04  # measured: 0.027
    five, _ = decoded(model, 0, 5, 4, start)
    assert all(map(torch.equal, five, beside))


@pytest.mark.parametrize("isa", native.instruction_sets() if native.available() is None else [])
@pytest.mark.parametrize(
    "case",
    [
        dict(k=96, n=10, norm=True),
        dict(k=200, n=21, residual=True),
        dict(k=72, n=46, norm=True, act="gated_silu", of="int8"),
        dict(k=33, n=7, residual=True, of="int8"),
    ],
)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_row_of_a_matrix_vector_product_has_the_same_bits_in_any_batch(
    isa: str, case: dict[str, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "run", lambda name, run=native.run, **members: run(name, isa=isa, **members))
    op = get_op("linear")
    call = op.example(torch.Generator().manual_seed(0), dtype, m=39, **case)
    x, *weights, residual = call.args
    run = op.implementations["native"].run

    def product(first: int, last: int) -> torch.Tensor:
        of = slice(first, last)
        inputs = Call((x[of], *weights, None if residual is None else residual[of]), call.attrs)
        (spec,) = op.schema.infer(op.name, specs_of(inputs), call.attrs)
        y = torch.full([int(s) for s in spec.shape], torch.nan, dtype=spec.dtype)
        run(*inputs.args, y, **call.attrs)
        return y

    alone = torch.cat([product(row, row + 1) for row in range(39)])
    for first, last in ((0, 2), (0, 3), (3, 7), (2, 7), (8, 14), (5, 12), (16, 32), (20, 37), (0, 39)):
        assert torch.equal(product(first, last), alone[first:last]), (first, last)
