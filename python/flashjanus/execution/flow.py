"""Text to latents: prompts are prepared once, and each evaluation is then one `flow_step` for all rows together."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from flashjanus.engine.ops.flow_update import unpatchify
from flashjanus.engine.ops.step_cache import CacheLine
from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.engine.runtime.cuda import Staging
from flashjanus.engine.runtime.entry import entry
from flashjanus.engine.runtime.executor import Executor
from flashjanus.errors import InputError
from flashjanus.execution import adapters
from flashjanus.execution.adapters import Adapter
from flashjanus.execution.runner import Runner
from flashjanus.model import FlowForm
from flashjanus.sampling.schedule import Sampler, Schedule

NUMBERS = 4
"""The number of plans with some unconditional branches, besides the one with none. Each number needs a plan and
calls of its own."""


@dataclass(frozen=True)
class FlowRequest:
    """One image: prompt ids without the trailing generation tag, how to draw it, its noise (c, H, W), and the
    adapter that all of it uses, including its unconditional branch."""

    prompt: tuple[int, ...]
    sampler: Sampler
    noise: torch.Tensor
    adapter: Adapter | None = None

    @property
    def schedule(self) -> Schedule:
        return self.sampler.schedule

    @property
    def timed_prompt(self) -> TimedPrompt:
        """The part of the request that is prepared."""
        return self.prompt, self.schedule.times


TimedPrompt = tuple[tuple[int, ...], tuple[float, ...]]
"""Prompt ids, and the times in [0, 1) of the evaluations."""


@dataclass(frozen=True)
class Branch:
    """Keys and values that a guidance branch attends to: of its prefix (L, n, G, D) and of the time tokens (L, K, G,
    D)."""

    k: torch.Tensor
    v: torch.Tensor
    k_table: torch.Tensor
    v_table: torch.Tensor


@dataclass(frozen=True)
class FlowPrefix:
    """What a row needs of its prompt of `length` tokens and its K times.

    branches: the conditional branch and, if there is one, the unconditional one. modulation: (K, E), or None if the
    model has none.
    """

    length: int
    branches: tuple[Branch, ...]
    modulation: torch.Tensor | None

    @property
    def steps(self) -> int:
        return self.branches[0].k_table.shape[1]

    def kept(self) -> FlowPrefix:
        """A copy in its own memory."""
        own = (Branch(*(t.clone() for t in (b.k, b.v, b.k_table, b.v_table))) for b in self.branches)
        return FlowPrefix(self.length, tuple(own), None if self.modulation is None else self.modulation.clone())

    @property
    def nbytes(self) -> int:
        tensors = [t for b in self.branches for t in (b.k, b.v, b.k_table, b.v_table)]
        return sum(t.nbytes for t in tensors) + (0 if self.modulation is None else self.modulation.nbytes)


class FlowSession(ProcessBound):
    """Memory of a bucket: R rows, of which the first U are guided, prompts of up to P tokens, and up to K evaluations.

    `join` rows, `step` all of them together, read `z`, and `leave` early. Between two steps a row may be joined anew,
    or `take_over` a row of another session. On a GPU a step replays one graph, and nothing waits for the device. With
    `skips` there are further plans on the same memory that run only the unconditional branches of the first rows; they
    are used when no other row needs its own. With `caches` there are plans without the language model, which run when
    all rows recall what it adds.
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
        self._runner, self._skips, self._padded = weakref.ref(runner), skips, runner.buckets.padded
        self._whole = FlowForm("store" if caches else None)
        self.flow = runner.executor(self._whole.name, R=rows, U=guided, P=prompt, K=steps)
        self.forms: dict[tuple[bool, int], Executor] = {}
        """The plans by whether the language model runs and how many unconditional branches do: all or none. If rows
        are not padded, plans for numbers in between are made when needed."""
        for model in (True, False) if caches else (True,):
            for branches in (guided, 0) if skips and guided else (guided,):
                self.forms[model, branches] = self._form(runner, model, branches)
        self._ran = self.flow
        self._staging = None if runner.gpu is None else Staging(runner.gpu, self.z[0].nbytes)
        host = self.flow.host
        tokens = host["slots"].shape[1]
        host["slots"].copy_(prompt + 1 + torch.arange(tokens))
        adapters.write(self.flow, range(rows + guided), None)
        bidirectional = runner.config.image_attention == "bidirectional"
        host["kv_end"].copy_(torch.full((tokens,), prompt + 1 + tokens) if bidirectional else host["slots"][0] + 1)

    @property
    def nbytes(self) -> int:
        return self.flow.nbytes + sum(form.arena_bytes for form in self.forms.values() if form is not self.flow)

    @property
    def z(self) -> torch.Tensor:
        """Latents of all rows (R, c, H, W), in the policy's latent dtype."""
        return self.flow.states["z"]

    def needs_branch(self, row: int) -> bool:
        """True if the next step needs the unconditional branch of `row`."""
        joined = self._joined[row]
        return joined is not None and joined.needs_branch(self._taken[row])

    @entry
    def leave(self, row: int) -> None:
        """Remove `row`, for which nobody waits any more: it no longer affects which plan runs, and its adapter costs
        nothing."""
        self._joined[row] = None
        self._write_adapter(row, None)

    def _write_adapter(self, row: int, adapter: Adapter | None) -> None:
        adapters.write(self.flow, (row, self.rows + row) if row < self.guided else (row,), adapter)
        self._written = True

    def _needs_model(self, row: int) -> bool:
        joined = self._joined[row]
        return joined is not None and joined.needs_model(self._taken[row])

    def _form(self, runner: Runner, model: bool, branches: int) -> Executor:
        if model and branches == self.guided:
            return self.flow
        form, sizes = self._whole if model else FlowForm("recall"), dict(self.flow.plan.sizes)
        if branches < self.guided:
            form, sizes = replace(form, branches=False), {**sizes, "V": branches}
        return runner.executor(form.name, self.flow.states, self.flow.inputs, self.flow, **sizes)

    def _branches(self) -> int:
        """The number of unconditional branches to run. It covers the last row that needs its own branch, and is
        rounded up so that there are few plans."""
        needed = max((row + 1 for row in range(self.guided) if self.needs_branch(row)), default=0)
        if not self._skips or (needed and self._padded):
            return self.guided
        apart = -(-self.guided // NUMBERS) if needed else 1
        return min(self.guided, -(-needed // apart) * apart)

    @entry
    def step(self) -> None:
        """Run one evaluation of every row that has some left."""
        if self._written:
            self.flow.upload()
            self._written = False
        model = any(map(self._needs_model, range(self.rows))) or (False, self.guided) not in self.forms
        form = model, self._branches()
        if form not in self.forms:
            runner = self._runner()
            assert runner is not None, "whoever steps has the model"
            self.forms[form] = self._form(runner, *form)
        self._ran = self.forms[form]
        self._ran.run()
        self._taken = [taken + 1 for taken in self._taken]

    @entry
    def velocities(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocities of the last step before guidance: conditional (R, c, H, W) and unconditional (V, c, H, W).

        The unconditional ones belong to the first V <= U rows, up to the last row that needed its own.
        """
        v = unpatchify(self._ran.outputs["velocity"], self.z.shape[1]).float()
        return v[: self.rows].clone(), v[self.rows :].clone()

    @entry
    def added(self, row: int, slot: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the language model added to its input (N, D), float32, in the last evaluation of `row` that stored it
        in `slot`: in the conditional branch and, if the row has one, in the unconditional branch."""
        name = f"slot_{slot}"
        rows = (row, self.rows + row) if row < self.guided else (row,)
        found = [self.flow.row(name, at).to(torch.float32, copy=True) for at in rows]
        return found[0], found[1] if len(found) > 1 else None

    @entry
    def join(self, prefix: FlowPrefix, row: int, request: FlowRequest) -> None:
        """Put `request` in `row`; `prefix` holds its prepared prompt and times."""
        self._place(prefix, row, request, 0)
        flow = self.flow
        flow.states["step"][row] = 0
        flow.states["history"][row].zero_()  # a solver's first step multiplies it by 0, but 0 * NaN is NaN
        noise = request.noise.to(self.z.dtype).contiguous()
        if self._staging is None or noise.device.type != "cpu":
            self.z[row].copy_(noise)
        else:
            self._staging.send(noise.view(torch.uint8).view(-1), self.z[row].view(torch.uint8).view(-1))

    @entry
    def take_over(self, prefix: FlowPrefix, row: int, request: FlowRequest, other: FlowSession, other_row: int) -> None:
        """Continue in `row` with the state of row `other_row` of `other`."""
        self._place(prefix, row, request, other._taken[other_row])
        flow, made = self.flow, other.flow
        for name in (flow.states.keys() & made.states.keys()) - {"k_cache", "v_cache"}:
            flow.row(name, row).copy_(made.row(name, other_row))
            has_branches = flow.states[name].shape[flow.plan.row_axes[name]] > self.rows
            if has_branches and row < self.guided and other_row < other.guided:
                flow.row(name, self.rows + row).copy_(made.row(name, other.rows + other_row))

    def _place(self, prefix: FlowPrefix, row: int, request: FlowRequest, taken: int) -> None:
        """Write everything of a row except its latents and their history."""
        flow, length, capacity = self.flow, len(request.prompt), self.prompt
        schedule = request.schedule
        guided = schedule.guided
        if prefix.length != length or prefix.steps < len(schedule) or len(prefix.branches) < 1 + guided:
            raise InputError(
                f"row {row}: expected a prompt of {length} tokens prepared for at least {len(schedule)} steps"
                f"{', with an unconditional branch' if guided else ''}; got one of {prefix.length} tokens for "
                f"{prefix.steps} steps{'' if len(prefix.branches) > 1 else ' without a branch'}"
            )
        if length > capacity or len(schedule) > self.steps or (guided and row >= self.guided):
            raise InputError(
                f"row {row}: expected a request of up to {capacity} prompt tokens and {self.steps} steps"
                f"{'' if row < self.guided else ' without guidance'}, got {length} tokens, {len(schedule)} steps, "
                f"guidance {request.sampler.guidance_scale}"
            )
        steps = min(prefix.steps, self.steps)
        if row < self.guided:  # an unused unconditional branch attends only to its image tokens
            flow.host["kv_start"][self.rows + row] = capacity + 1
            flow.host["positions"][self.rows + row].zero_()
        for to, made in zip((row, self.rows + row), prefix.branches[: 1 + guided], strict=False):
            first = capacity - made.k.shape[1]
            flow.states["k_cache"][:, to, first:capacity].copy_(made.k)
            flow.states["v_cache"][:, to, first:capacity].copy_(made.v)
            flow.inputs["k_table"][:, to, :steps].copy_(made.k_table[:, :steps])
            flow.inputs["v_table"][:, to, :steps].copy_(made.v_table[:, :steps])
            flow.host["kv_start"][to] = first
            positions = flow.host["positions"]
            positions[to].copy_(length + 1 + torch.arange(positions.shape[1]))
        if "modulation" in flow.inputs and prefix.modulation is not None:
            flow.inputs["modulation"][row, :steps].copy_(prefix.modulation[:steps])
        flow.host["steps"][row] = len(schedule)
        flow.host["schedule"][row, : len(schedule)].copy_(torch.tensor(schedule.lines, dtype=torch.float32))
        if "cache" in flow.host:
            lines = torch.tensor(schedule.cache or [CacheLine()] * len(schedule), dtype=torch.float32)
            flow.host["cache"][row, : len(schedule)].copy_(lines)
        self._write_adapter(row, request.adapter)
        self._joined[row], self._taken[row] = schedule, taken


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
        self._lengths: list[int] = []

    @property
    def nbytes(self) -> int:
        return self.executor.nbytes

    @entry
    def run(self, prompts: Sequence[TimedPrompt], adapter: Adapter | None = None) -> None:
        """Prepare the prompt and the times of each row, all with one adapter."""
        self.write(prompts, adapter)
        self.executor.run()

    @entry
    def prefix(self, prompt: int) -> FlowPrefix:
        """The prefix of prompt number `prompt` of the last run, in this session's memory."""
        length, end, steps = self._lengths[prompt], self.capacity, self.steps
        k, v = self.executor.states["k_cache"], self.executor.states["v_cache"]
        branches = [(prompt, length)] + ([(self.prompts + prompt, 1)] if prompt < self.guided else [])
        made = tuple(
            Branch(*(t[:, row, end - n : end] for t in (k, v)), *(t[:, row, end : end + steps] for t in (k, v)))
            for row, n in branches
        )
        modulation = self.executor.outputs.get("modulation")
        return FlowPrefix(length, made, None if modulation is None else modulation[prompt])

    @entry
    def write(self, prompts: Sequence[TimedPrompt], adapter: Adapter | None = None) -> None:
        """Write and send the inputs of `run`."""
        host, capacity = self.executor.host, self.capacity
        adapters.write(self.executor, range(self.prompts + self.guided), adapter)
        self._lengths = [len(ids) for ids, _ in prompts]
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
        """1000 t, float32; in official numerics t is rounded to the latents' dtype first."""
        t = torch.tensor([t * 1000.0 for t in times[: self.steps]], dtype=torch.float32)
        t = t.to(self._latents)
        return torch.nn.functional.pad(t.float(), (0, self.steps - len(t)))
