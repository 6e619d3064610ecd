"""Text to latents: prepare the prompts once, then one `flow_step` per Euler step for all rows together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flashjanus.engine.ops.cfg_euler import unpatchify
from flashjanus.errors import InputError

from .runner import Runner, prompt_capacity


@dataclass(frozen=True)
class FlowRequest:
    """One image: prompt ids without the trailing generation tag, its schedule, and its noise (c, H, W)."""

    prompt: tuple[int, ...]
    steps: int
    guidance: float
    noise: torch.Tensor

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0


class FlowSession:
    """Memory of a bucket: R rows of which the first U are guided, prompts of up to P tokens, up to K steps.

    The contract for embedding: `join` rows, `step` all of them together, read `z`; a row may be joined anew between any
    two steps.
    """

    def __init__(self, runner: Runner, rows: int, guided: int, prompt: int, steps: int) -> None:
        self.runner, self.prompt, self.steps = runner, prompt, steps
        self.rows, self.guided = rows, guided
        self.flow = runner.executor("flow_step", R=rows, U=guided, P=prompt, K=steps)
        inputs = self.flow.inputs
        tokens = inputs["slots"].shape[1]
        inputs["slots"].copy_(prompt + 1 + torch.arange(tokens))
        bidirectional = runner.config.image_attention == "bidirectional"
        inputs["kv_end"].copy_(torch.full((tokens,), prompt + 1 + tokens) if bidirectional else inputs["slots"][0] + 1)

    @property
    def nbytes(self) -> int:
        return self.flow.nbytes

    @property
    def z(self) -> torch.Tensor:
        """Latents of all rows (R, c, H, W), in the policy's latent dtype."""
        return self.flow.states["z"]

    def step(self) -> None:
        """One Euler step of every row that has steps left."""
        self.flow.run()

    def velocities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(conditional (R, c, H, W), unconditional (U, c, H, W)) of the last step, before guidance."""
        v = unpatchify(self.flow.outputs["velocity"], self.z.shape[1]).float()
        return v[: self.rows].clone(), v[self.rows :].clone()

    def join(self, prepared: Prepared, source: int, row: int, request: FlowRequest) -> None:
        """Put `request` in `row`; prompt number `source` of `prepared` is its prompt."""
        flow, length, capacity = self.flow, len(request.prompt), self.prompt
        if prepared.steps > self.steps or (row < self.guided and source >= prepared.guided):
            raise InputError(
                f"row {row}: expected a prompt prepared for at most {self.steps} steps"
                f"{', with an unconditional branch' if row < self.guided else ''}; got prompt {source} of "
                f"{prepared.prompts} ({prepared.guided} with a branch), prepared for {prepared.steps} steps"
            )
        if length > capacity or request.steps > self.steps or (request.guided and row >= self.guided):
            raise InputError(
                f"row {row}: expected a request of up to {capacity} prompt tokens and {self.steps} steps"
                f"{'' if row < self.guided else ' without guidance'}, got {length} tokens, {request.steps} steps, "
                f"guidance {request.guidance}"
            )
        branches = [(row, source, length)]
        if row < self.guided:
            branches.append((self.rows + row, prepared.prompts + source, 1))
        for to, at, prefix in branches:
            for cache, table in (("k_cache", "k_table"), ("v_cache", "v_table")):
                made = prepared.executor.states[cache][:, at]
                end, steps = prepared.capacity, prepared.steps
                flow.states[cache][:, to, capacity - prefix : capacity].copy_(made[:, end - prefix : end])
                flow.inputs[table][:, to, :steps].copy_(made[:, end : end + steps])
            flow.inputs["kv_start"][to] = capacity - prefix
            positions = flow.inputs["positions"]
            positions[to].copy_(length + 1 + torch.arange(positions.shape[1]))
        if "modulation" in flow.inputs:
            made = prepared.executor.outputs["modulation"][source]
            flow.inputs["modulation"][row, : len(made)].copy_(made)
        flow.inputs["steps"][row] = request.steps
        flow.inputs["guidance"][row] = request.guidance
        flow.states["step"][row] = 0
        self.z[row].copy_(request.noise)


class Prepared:
    """`flow_prepare` for R prompts (the first U with an unconditional branch), capacity P, K steps."""

    def __init__(self, runner: Runner, prompts: int, guided: int, capacity: int, steps: int) -> None:
        self.runner, self.prompts, self.guided = runner, prompts, guided
        self.capacity, self.steps = capacity, steps
        self.executor = runner.executor("flow_prepare", R=prompts, U=guided, P=capacity, K=steps)
        inputs, slots = self.executor.inputs, torch.arange(capacity)
        inputs["prompt_slots"].copy_(slots)
        inputs["prompt_kv_end"].copy_(slots + 1)
        inputs["time_slots"].copy_(capacity + torch.arange(steps))
        inputs["time_kv_end"].fill_(capacity)

    @property
    def nbytes(self) -> int:
        return self.executor.nbytes

    def run(self, schedule: Sequence[tuple[tuple[int, ...], int]]) -> None:
        """Fill the state for (prompt ids, number of steps) of each row."""
        inputs, capacity = self.executor.inputs, self.capacity
        for row, (ids, steps) in enumerate(schedule):
            start = capacity - len(ids)
            inputs["ids"][row].zero_()
            inputs["ids"][row, start:].copy_(torch.tensor(ids))
            inputs["prompt_positions"][row].copy_((torch.arange(capacity) - start).clamp(min=0))
            inputs["kv_start"][row] = start
            inputs["time_positions"][row] = len(ids)
            if row < self.guided:
                inputs["kv_start"][self.prompts + row] = capacity - 1
                inputs["time_positions"][self.prompts + row] = len(ids)
            inputs["t"][row].copy_(self._times(steps))
        self.executor.run()

    def _times(self, steps: int) -> torch.Tensor:
        """t_k = 1000 k / steps, float32; in official numerics rounded to the latents' dtype first."""
        t = torch.tensor([k / steps * 1000.0 for k in range(min(steps, self.steps))], dtype=torch.float32)
        t = t.to(self.runner.policy.latents)
        return torch.nn.functional.pad(t.float(), (0, self.steps - len(t)))


def generate(
    runner: Runner,
    requests: Sequence[FlowRequest],
    on_step: Callable[[int, torch.Tensor], torch.Tensor | None] | None = None,
    trace: list[dict[str, Any]] | None = None,
) -> torch.Tensor:
    """Latents (R, c, H, W) at t = 1 of all requests, float32, each as if it had run alone.

    `on_step(k, z)` runs after step k on the latents in request order; what it returns, if anything, replaces them.
    `trace` receives, per step, `z` before it and the velocities `v_cond` and `v_uncond` (NaN in rows without guidance,
    None if there are no others).
    """
    order = sorted(range(len(requests)), key=lambda i: not requests[i].guided)
    guided = sum(r.guided for r in requests)
    steps = max(r.steps for r in requests)
    capacity = prompt_capacity(max(len(r.prompt) for r in requests))
    schedule = list(dict.fromkeys((requests[i].prompt, requests[i].steps) for i in order))
    with_branch = len(dict.fromkeys((r.prompt, r.steps) for r in requests if r.guided))
    with runner.lease(FlowSession, len(requests), guided, capacity, steps) as session:
        with runner.lease(Prepared, len(schedule), with_branch, capacity, steps) as prepared:
            prepared.run(schedule)
            for row, i in enumerate(order):
                source = schedule.index((requests[i].prompt, requests[i].steps))
                session.join(prepared, source, row, requests[i])
        return _integrate(session, order, steps, on_step, trace)


def _integrate(
    session: FlowSession,
    order: Sequence[int],
    steps: int,
    on_step: Callable[[int, torch.Tensor], torch.Tensor | None] | None,
    trace: list[dict[str, Any]] | None,
) -> torch.Tensor:
    back = torch.tensor(order).argsort()
    for k in range(steps):
        before = session.z[back].float() if trace is not None else None
        session.step()
        if trace is not None:
            cond, uncond = session.velocities()
            padded = torch.full_like(cond, torch.nan)
            padded[: session.guided] = uncond
            trace.append({"z": before, "v_cond": cond[back], "v_uncond": padded[back] if session.guided else None})
        if on_step is not None:
            replaced = on_step(k, session.z[back].float())
            if replaced is not None:
                session.z.copy_(replaced[torch.tensor(order)])
    return session.z[back].float()
