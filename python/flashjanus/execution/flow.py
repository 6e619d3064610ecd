"""Text to latents: prepare the prompts once, then one `flow_step` per evaluation for all rows together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flashjanus.engine.ops.flow_update import unpatchify
from flashjanus.engine.ops.step_cache import CacheLine
from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.engine.runtime.cuda import Staging
from flashjanus.engine.runtime.entry import entry
from flashjanus.engine.runtime.executor import Executor
from flashjanus.errors import InputError
from flashjanus.execution.buckets import padded
from flashjanus.execution.runner import Runner
from flashjanus.sampling.checks import MAX_STEPS
from flashjanus.sampling.schedule import Sampler, Schedule


@dataclass(frozen=True)
class FlowRequest:
    """One image: prompt ids without the trailing generation tag, how it is drawn, and its noise (c, H, W)."""

    prompt: tuple[int, ...]
    sampler: Sampler
    noise: torch.Tensor

    @property
    def schedule(self) -> Schedule:
        return self.sampler.schedule

    @property
    def timed_prompt(self) -> TimedPrompt:
        """What of it is prepared."""
        return self.prompt, self.schedule.times


TimedPrompt = tuple[tuple[int, ...], tuple[float, ...]]
"""Prompt ids, and the times in [0, 1) of the evaluations."""


class FlowSession(ProcessBound):
    """Memory of a bucket: R rows of which the first U are guided, prompts of up to P tokens, up to K evaluations.

    The contract for embedding: `join` rows, `step` all of them together, read `z`, `leave` early; a row may be joined
    anew between any two steps. On a GPU a step is the replay of one graph, and neither waits for the device. With
    `skips` there are plans on the same memory without unconditional branches, which run when no row needs its own; with
    `caches` such without the language model, which run when all rows recall what it adds.
    """

    @entry
    def __init__(
        self, runner: Runner, rows: int, guided: int, prompt: int, steps: int, skips: bool = False, caches: bool = False
    ) -> None:
        self.prompt, self.steps = prompt, steps
        self.rows, self.guided = rows, guided
        self._written = True
        self._joined: list[Schedule | None] = [None] * rows
        self._taken = [0] * rows
        whole = "flow_step_storing" if caches else "flow_step"
        self.flow = runner.executor(whole, R=rows, U=guided, P=prompt, K=steps)
        states, inputs, sizes = self.flow.states, self.flow.inputs, self.flow.plan.sizes
        self.forms: dict[tuple[bool, bool], Executor] = {}
        """By whether the language model runs, and unconditional branches do."""
        for model in (True, False) if caches else (True,):
            for branches in (True, False) if skips and guided else (True,):
                name = (whole if model else "flow_step_recalling") + ("" if branches else "_conditional")
                self.forms[model, branches] = (
                    self.flow if name == whole else runner.executor(name, states=states, inputs=inputs, **sizes)
                )
        self._ran = self.flow
        self._staging = None if runner.gpu is None else Staging(runner.gpu, self.z[0].nbytes)
        host = self.flow.host
        tokens = host["slots"].shape[1]
        host["slots"].copy_(prompt + 1 + torch.arange(tokens))
        bidirectional = runner.config.image_attention == "bidirectional"
        host["kv_end"].copy_(torch.full((tokens,), prompt + 1 + tokens) if bidirectional else host["slots"][0] + 1)

    @property
    def nbytes(self) -> int:
        return self.flow.nbytes + sum(form.plan.arena_bytes for form in self.forms.values() if form is not self.flow)

    @property
    def z(self) -> torch.Tensor:
        """Latents of all rows (R, c, H, W), in the policy's latent dtype."""
        return self.flow.states["z"]

    def needs_branch(self, row: int) -> bool:
        """True where the next step needs the unconditional branch of `row`."""
        joined = self._joined[row]
        return joined is not None and joined.needs_branch(self._taken[row])

    def leave(self, row: int) -> None:
        """Nobody waits for `row` any more: it decides no longer which plan runs."""
        self._joined[row] = None

    def _needs_model(self, row: int) -> bool:
        joined = self._joined[row]
        return joined is not None and joined.needs_model(self._taken[row])

    @entry
    def step(self) -> None:
        """One evaluation of every row that has some left."""
        if self._written:
            self.flow.upload()
            self._written = False
        model = any(map(self._needs_model, range(self.rows))) or (False, True) not in self.forms
        branches = any(map(self.needs_branch, range(self.guided))) or (True, False) not in self.forms
        self._ran = self.forms[model, branches]
        self._ran.run()
        self._taken = [taken + 1 for taken in self._taken]

    @entry
    def velocities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(conditional (R, c, H, W), unconditional (U, c, H, W)) of the last step, before guidance.

        The unconditional ones are (0, c, H, W) if no row needed its own.
        """
        v = unpatchify(self._ran.outputs["velocity"], self.z.shape[1]).float()
        return v[: self.rows].clone(), v[self.rows :].clone()

    @entry
    def join(self, prepared: Prepared, source: int, row: int, request: FlowRequest) -> None:
        """Put `request` in `row`; prompt number `source` of `prepared` is its prompt."""
        flow, length, capacity = self.flow, len(request.prompt), self.prompt
        schedule = request.schedule
        if prepared.steps > self.steps or (row < self.guided and source >= prepared.guided):
            raise InputError(
                f"row {row}: expected a prompt prepared for at most {self.steps} steps"
                f"{', with an unconditional branch' if row < self.guided else ''}; got prompt {source} of "
                f"{prepared.prompts} ({prepared.guided} with a branch), prepared for {prepared.steps} steps"
            )
        if length > capacity or len(schedule) > self.steps or (schedule.guided and row >= self.guided):
            raise InputError(
                f"row {row}: expected a request of up to {capacity} prompt tokens and {self.steps} steps"
                f"{'' if row < self.guided else ' without guidance'}, got {length} tokens, {len(schedule)} steps, "
                f"guidance {request.sampler.guidance_scale}"
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
            flow.host["kv_start"][to] = capacity - prefix
            positions = flow.host["positions"]
            positions[to].copy_(length + 1 + torch.arange(positions.shape[1]))
        if "modulation" in flow.inputs:
            made = prepared.executor.outputs["modulation"][source]
            flow.inputs["modulation"][row, : len(made)].copy_(made)
        flow.host["steps"][row] = len(schedule)
        flow.host["schedule"][row, : len(schedule)].copy_(torch.tensor(schedule.lines, dtype=torch.float32))
        if "cache" in flow.host:
            lines = torch.tensor(schedule.cache or [CacheLine()] * len(schedule), dtype=torch.float32)
            flow.host["cache"][row, : len(schedule)].copy_(lines)
        self._written = True
        self._joined[row], self._taken[row] = schedule, 0
        flow.states["step"][row] = 0
        flow.states["history"][row].zero_()  # a solver's first step takes none of it, but 0 * NaN is NaN
        noise = request.noise.to(self.z.dtype).contiguous()
        if self._staging is None or noise.device.type != "cpu":
            self.z[row].copy_(noise)
        else:
            self._staging.send(noise.view(torch.uint8).view(-1), self.z[row].view(torch.uint8).view(-1))


class Prepared(ProcessBound):
    """`flow_prepare` for R prompts (the first U with an unconditional branch), capacity P, K steps."""

    @entry
    def __init__(self, runner: Runner, prompts: int, guided: int, capacity: int, steps: int) -> None:
        self.prompts, self.guided, self.capacity, self.steps = prompts, guided, capacity, steps
        self._latents = runner.policy.latents
        self.executor = runner.executor("flow_prepare", R=prompts, U=guided, P=capacity, K=steps)
        host, slots = self.executor.host, torch.arange(capacity)
        host["prompt_slots"].copy_(slots)
        host["prompt_kv_end"].copy_(slots + 1)
        host["time_slots"].copy_(capacity + torch.arange(steps))
        host["time_kv_end"].fill_(capacity)

    @property
    def nbytes(self) -> int:
        return self.executor.nbytes

    @entry
    def run(self, prompts: Sequence[TimedPrompt]) -> None:
        """Fill the state for the prompt and the times of each row."""
        self.write(prompts)
        self.executor.run()

    @entry
    def write(self, prompts: Sequence[TimedPrompt]) -> None:
        """What `run` reads, written and sent."""
        host, capacity = self.executor.host, self.capacity
        for row, (ids, times) in enumerate(prompts):
            start = capacity - len(ids)
            host["ids"][row].zero_()
            host["ids"][row, start:].copy_(torch.tensor(ids))
            host["prompt_positions"][row].copy_((torch.arange(capacity) - start).clamp(min=0))
            host["kv_start"][row] = start
            host["time_positions"][row] = len(ids)
            if row < self.guided:
                host["kv_start"][self.prompts + row] = capacity - 1
                host["time_positions"][self.prompts + row] = len(ids)
            host["t"][row].copy_(self._rounded(times))
        self.executor.upload()

    def _rounded(self, times: Sequence[float]) -> torch.Tensor:
        """1000 t, float32; in official numerics rounded to the latents' dtype first."""
        t = torch.tensor([t * 1000.0 for t in times[: self.steps]], dtype=torch.float32)
        t = t.to(self._latents)
        return torch.nn.functional.pad(t.float(), (0, self.steps - len(t)))


def generate(
    runner: Runner,
    requests: Sequence[FlowRequest],
    on_step: Callable[[int, torch.Tensor], torch.Tensor | None] | None = None,
    trace: list[dict[str, Any]] | None = None,
) -> torch.Tensor:
    """Latents (R, c, H, W) at t = 1 of all requests, float32; no row sees another.

    `on_step(k, z)` runs after evaluation k on the latents in request order; what it returns, if anything, replaces
    them, and a solver that remembers an earlier evaluation keeps what it remembers. `trace` receives, per evaluation,
    `z` before it and the velocities `v_cond` and `v_uncond` (NaN in rows whose unconditional branch it did not need,
    None if no row has one).
    """
    order = sorted(range(len(requests)), key=lambda i: not requests[i].schedule.guided)
    buckets, keys = runner.buckets, [r.timed_prompt for r in requests]
    rows = padded(len(requests), buckets.rows)
    guided = sum(r.schedule.guided for r in requests)
    branches = buckets.branches(guided, rows)
    capacity = padded(max(len(r.prompt) for r in requests), buckets.prompt_tokens)
    longest = max(len(r.schedule) for r in requests)
    steps = min(padded(longest, buckets.steps), MAX_STEPS)
    timed = list(dict.fromkeys(keys[i] for i in order))
    prompts = padded(len(timed), buckets.rows)
    with_branch = buckets.branches(len({keys[i] for i in order[:branches]}), prompts)
    skips, caches = (any(getattr(r.schedule, name) for r in requests) for name in ("skips", "caches"))
    with runner.lease(FlowSession, rows, branches, capacity, steps, skips, caches) as session:
        with runner.lease(Prepared, prompts, with_branch, capacity, steps) as prepared:
            prepared.run(timed)
            for row, i in enumerate(order):
                session.join(prepared, timed.index(keys[i]), row, requests[i])
        for row in range(len(order), rows):  # of an earlier request that was given up
            session.leave(row)
        return _integrate(session, order, guided, longest, on_step, trace)


def _integrate(
    session: FlowSession,
    order: Sequence[int],
    guided: int,
    steps: int,
    on_step: Callable[[int, torch.Tensor], torch.Tensor | None] | None,
    trace: list[dict[str, Any]] | None,
) -> torch.Tensor:
    back = torch.tensor(order).argsort().to(session.z.device)
    for k in range(steps):
        before = session.z[back].float() if trace is not None else None
        fresh = [row for row in range(guided) if session.needs_branch(row)]
        session.step()
        if trace is not None:
            cond, uncond = session.velocities()
            others = torch.full_like(cond, torch.nan)
            others[fresh] = uncond[fresh]
            trace.append({"z": before, "v_cond": cond[back], "v_uncond": others[back] if guided else None})
        if on_step is not None:
            replaced = on_step(k, session.z[back].float())
            if replaced is not None:
                session.z[: len(order)].copy_(replaced[back.argsort()])
    return session.z[back].float()
