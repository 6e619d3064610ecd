"""A model's weights, graphs and executors, which all request paths (flow, text, images) share."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from threading import RLock
from typing import Protocol, TypeVar

import torch

from flashjanus import model as programs
from flashjanus.checkpoint import JanusFlowConfig, Target, VaeConfig, vae_layout, weight_layout
from flashjanus.checkpoint.adapters import AdapterFiles
from flashjanus.engine.graph import Graph
from flashjanus.engine.ops import Avoided, all_ops
from flashjanus.engine.plan import Plan, lower
from flashjanus.engine.plan.plan import nbytes
from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.engine.runtime.cuda import Gpu
from flashjanus.engine.runtime.executor import Executor
from flashjanus.errors import DeviceError, InputError, OutOfMemoryError, PlanError
from flashjanus.execution.adapters import Adapter, Adapters
from flashjanus.execution.buckets import EXACT, Buckets, padded
from flashjanus.execution.latent_map import Previews
from flashjanus.model import Policy

IDLE_BYTES = 2 * 2**30
"""Host memory of idle sessions that is kept for later requests. The least recently used is dropped first; the last
used always stays."""
IDLE_SHARE = 0.25
"""The same limit on a GPU, as a share of its memory."""
IDLE_SESSIONS = 128
"""The most idle sessions, whatever their size: the plans and calls of each take some megabytes of Python objects."""
KEPT_PLANS = 64
"""The most plans kept for buckets whose sessions come and go. Making a plan takes longer than an evaluation of a
small model."""
_LOCK = RLock()
"""Guards the idle sessions of all models. A forked child finds it unlocked, and what it guards consistent."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class Session(Protocol):
    """The memory of a bucket, which one caller has at a time."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Session)


class Runner(ProcessBound):
    """Plans and executors of one model on one device.

    `weights` and `vae_weights` are the packed tensors of `weight_layout` and `vae_layout` in the policies' dtypes.
    `implementations` forces an implementation per op; an implementation for which `avoided` gives a reason is not used
    (see lower). `gpu`: set if `device` is a GPU.
    """

    def __init__(
        self,
        config: JanusFlowConfig,
        policy: Policy,
        weights: Mapping[str, torch.Tensor],
        device: torch.device,
        *,
        vae_config: VaeConfig | None = None,
        vae_policy: Policy | None = None,
        vae_weights: Mapping[str, torch.Tensor] | None = None,
        implementations: Mapping[str, str | Sequence[str]] | None = None,
        avoided: Avoided | None = None,
        buckets: Buckets = EXACT,
        gpu: Gpu | None = None,
    ) -> None:
        self.config, self.policy, self.device = config, policy, device
        self.buckets, self.gpu = buckets, gpu
        self.vae_config, self.vae_policy = vae_config, vae_policy or policy
        memory = device if gpu is None else gpu.device
        self.weights = {**weights, "llm.rope": programs.rope_table(config.language, policy).to(memory)}
        self.vae_weights = dict(vae_weights or {})
        self.adapters = Adapters(config, policy, self.weights)
        self.implementations, self.avoided = _known(implementations or {}), avoided
        self._graphs: dict[str, Graph] = {}
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()
        self._idle: OrderedDict[Hashable, Session] = OrderedDict()
        self._idle_sum = 0
        self._leased = 0
        self._gpu_bytes = None if gpu is None else gpu.driver.free_memory()[1]
        self._reserved: dict[Hashable, int] = {}
        self._reserved_sum = 0
        self._process = os.getpid()
        self.previews = Previews(None, config.gen_encoder.input_channels)

    def graph(self, program: str) -> Graph:
        """The graph of a program, built on first use."""
        if program not in self._graphs:
            self._graphs[program] = self._builders[program]()
        return self._graphs[program]

    def plan(self, program: str, **sizes: int) -> Plan:
        """The plan of a program for a bucket of sizes (see `flashjanus.model.programs` for the symbols)."""
        if program not in self._builders:
            raise InputError(f"program '{program}': expected one of {', '.join(self._builders)}")
        key = (program, *sorted(sizes.items()))
        plan = self._plans.get(key)
        if plan is None:
            plan = lower(self.graph(program), sizes, self.device, self.implementations, avoided=self.avoided)
            self._plans[key] = plan
            while len(self._plans) > KEPT_PLANS:
                self._plans.popitem(last=False)
        return plan

    def executor(
        self,
        program: str,
        states: Mapping[str, torch.Tensor] | None = None,
        inputs: Mapping[str, torch.Tensor] | None = None,
        beside: Executor | None = None,
        /,
        **sizes: int,
    ) -> Executor:
        """A plan bound to this model's weights and, on a GPU, captured, which sets `states` to zero. beside: see
        Executor."""
        weights = self.vae_weights if program == "decode_latents" else self.weights
        executor = Executor(self.plan(program, **sizes), weights, states, inputs, self.gpu, beside)
        executor.capture()
        return executor

    @contextmanager
    def lease(self, make: Callable[..., T], *bucket: Hashable) -> Iterator[T]:
        """`take` a session and `give` it back at the end of the block."""
        session = self.take(make, *bucket)
        try:
            yield session
        finally:
            self.give(session, make, *bucket)

    def take(self, make: Callable[..., T], *bucket: Hashable) -> T:
        """A session, make(self, *bucket) or one that was given back; no other caller has it meanwhile."""
        if self.gpu is not None and self._process != os.getpid():
            raise DeviceError(
                f"expected a call in the process that loaded the model on {self.device}, got one in a process forked "
                "from it, where CUDA does not run: load the model in the child, started by 'spawn'"
            )
        if self.gpu is not None:
            with self.gpu.launching():  # copies into it are ordered after what others have launched
                pass
        with _LOCK:
            session = self._take((make, *bucket))
            if session is not None:
                self._leased += 1
                return session  # type: ignore[return-value]
        made = self._make(make, bucket)
        with _LOCK:
            self._leased += 1
        return made

    def give(self, session: Session, make: Callable[..., Session], *bucket: Hashable) -> None:
        """Give back a session, which is kept for the next caller that needs it."""
        key = (make, *bucket)
        dropped: list[Session] = []
        with _LOCK:
            self._leased -= 1
            other = self._take(key)  # another caller had it at the same time
            dropped += [] if other is None else [other]
            self._idle[key] = session
            self._idle_sum += session.nbytes
            count, size = self._limits
            while len(self._idle) > 1 and (len(self._idle) > count or self._idle_sum > size):
                oldest = self._take(next(iter(self._idle)))
                assert oldest is not None
                dropped.append(oldest)
        if dropped and self.gpu is not None:
            self.gpu.driver.release()  # streams other than the one that gets their memory may still use it

    @property
    def leased(self) -> int:
        """The number of sessions that callers have."""
        return self._leased

    def dropped(self) -> None:
        """Count a session that was taken and is not given back, because its memory cannot be reused."""
        with _LOCK:
            self._leased -= 1

    def _make(self, make: Callable[..., T], bucket: tuple[Hashable, ...]) -> T:
        """Make a new session; if memory runs out, drop the idle ones first."""
        with torch.inference_mode(False):  # memory made in inference mode could not be written outside of it
            try:
                return make(self, *bucket)
            except OutOfMemoryError:
                if self.gpu is None or not self._idle:
                    raise
            self._drop_idle()
            return make(self, *bucket)

    def _take(self, key: Hashable) -> Session | None:
        session = self._idle.pop(key, None)
        if session is not None:
            self._idle_sum -= session.nbytes
        return session

    def reserve(self, buckets: Mapping[Hashable, int]) -> None:
        """Keep idle sessions of at least the total size of all buckets that were ever passed here: bytes by (make,
        *bucket)."""
        self._reserved.update(buckets)
        self._reserved_sum = sum(self._reserved.values())

    def reserve_adapters(self, slots: int, rank: int) -> None:
        """Make slots for adapters; plans and their sessions are made anew. Raises InputError, OutOfMemoryError."""
        what = "room for adapters is part of every plan; reserve it before requests start, or after they have ended"
        with self.adapters.alone(what), self._writing():
            if self._leased:
                raise InputError(f"expected no row's memory to be in use, got {self._leased}: {what}")
            try:
                self.adapters.make_room(slots, rank)
            except torch.OutOfMemoryError as error:
                if self.gpu is None:
                    raise
                needed = sum(map(nbytes, self.adapters.specs_of(slots, rank).values()))
                raise self.gpu.out_of_memory(f"{slots} adapters of rank {rank}", {"factors": needed}) from error
            self.__dict__.pop("_builders", None)
            self._graphs.clear()
            self._plans.clear()
            self._drop_idle()

    def _drop_idle(self) -> None:
        """Drop all idle sessions."""
        with _LOCK:
            idle = [*self._idle.values()]
            self._idle.clear()
            self._idle_sum = 0
        idle.clear()
        if self.gpu is not None:
            self.gpu.driver.release()

    def load_adapter(self, files: AdapterFiles, name: str) -> Adapter:
        """Load an adapter into a slot. Raises InputError."""
        with self._writing():
            return self.adapters.load(files, name)

    def merge_adapter(self, name: str | None) -> None:
        """Merge the adapter of that name into the weights; None restores the original weights bit for bit. Raises
        InputError."""
        with self.adapters.alone("they would see weights change"), self._writing():
            if name is None:
                self.adapters.unmerge()
            else:
                self.adapters.merge(name)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Order writes to weights in this block after everything launched before."""
        with ExitStack() as scope:
            if self.gpu is not None:
                scope.enter_context(self.gpu.launching())
                scope.enter_context(self.gpu.driver.current())
            yield

    def synchronize(self) -> None:
        """Wait for all launched work, if there can be any; used for timing."""
        if self.gpu is not None:
            self.gpu.driver.synchronize()

    @property
    def _limits(self) -> tuple[int, int]:
        """The limits on idle sessions: their number and their bytes."""
        size = IDLE_BYTES if self._gpu_bytes is None else int(IDLE_SHARE * self._gpu_bytes)
        return max(len(self._reserved), IDLE_SESSIONS), max(self._reserved_sum, size)

    @cached_property
    def _builders(self) -> dict[str, Callable[[], Graph]]:
        """The builder of each program's graph. The specs of the weights are laid out once rather than for every
        plan."""
        specs = {**self._specs(weight_layout(self.config), self.policy, language=True), **self.adapters.specs}
        names = ("encode_images", "prefill", "decode_step", "flow_prepare", "encode_latents", "decode_velocity")
        builders: dict[str, Callable[[], Graph]] = {
            name: partial(getattr(programs, name), self.config, self.policy, specs) for name in names
        }
        for name, form in programs.FLOW_FORMS.items():
            builders[name] = partial(programs.flow_step, self.config, self.policy, specs, form)
        for name in programs.READS:
            builders[name] = partial(programs.read_embeds, self.config, self.policy, specs, name)
        if self.vae_config is not None:
            vae_specs = self._specs(vae_layout(self.vae_config), self.vae_policy, language=False)
            builders["decode_latents"] = partial(programs.decode_latents, self.vae_config, self.vae_policy, vae_specs)
        return builders

    def sizes(self, rows: int, prompt_tokens: int, steps: int) -> dict[str, dict[str, int]]:
        """The sizes of the bucket, by program, for `rows` rows (guided, for the flow), a prompt of `prompt_tokens`
        tokens, and a number of steps or of new tokens."""
        config, buckets = self.config, self.buckets
        rows, prompt = padded(rows, buckets.rows), padded(prompt_tokens, buckets.prompt_tokens)
        new, steps = padded(steps, buckets.new_tokens), padded(steps, buckets.steps)
        step = dict(R=rows, U=rows, P=prompt, K=steps)
        return {
            "flow_prepare": step,
            **{name: step if form.branches else {**step, "V": 0} for name, form in programs.FLOW_FORMS.items()},
            "prefill": dict(B=rows, N=prompt, S=prompt + new, F=1 + config.num_understanding_tokens, K=new),
            "decode_step": dict(B=rows, S=prompt + new, K=new),
            "encode_images": dict(I=rows),
            "encode_latents": dict(R=rows),
            "decode_velocity": dict(R=rows),
            **{name: dict(B=rows, N=prompt, S=prompt + new) for name in programs.READS},
            "decode_latents": dict(B=rows, H=config.latent_size, W=config.latent_size),
        }

    def _specs(self, layout: list[Target], policy: Policy, language: bool) -> programs.Weights:
        return programs.weight_specs(layout, policy, self.config.language if language else None)


def _known(implementations: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Check implementation names by op. Programs take only what they need, so an unknown name would otherwise go
    unnoticed."""
    ops = all_ops()
    chosen: dict[str, tuple[str, ...]] = {}
    for op, names in implementations.items():
        if op not in ops:
            raise PlanError(f"implementations: expected the name of an op, got {op!r}; there are: {', '.join(ops)}")
        chosen[op] = (names,) if isinstance(names, str) else tuple(names)
        if not chosen[op]:
            raise PlanError(f"implementations: expected at least one name for {op}, got none; leave {op} out")
        for name in chosen[op]:
            if name not in ops[op].implementations:
                known = ", ".join(ops[op].implementations)
                raise PlanError(
                    f"implementations: expected an implementation of {op}, got {name!r}; there are: {known}"
                )
    return chosen
