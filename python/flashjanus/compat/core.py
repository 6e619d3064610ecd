"""Decides whether a call of a model's module runs on the engine or on the module itself, and gives the reason."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as all_modules
from typing_extensions import Self

from flashjanus.api.janusflow import JanusFlow
from flashjanus.compat import sharing
from flashjanus.compat.engine import Engine
from flashjanus.compat.modules import llama, siglip, uvit
from flashjanus.compat.outputs import ReferencePathWarning
from flashjanus.compat.said import warn
from flashjanus.engine.runtime.isolation import isolated
from flashjanus.errors import FlashJanusError, OutOfMemoryError

if TYPE_CHECKING:
    from flashjanus.checkpoint import JanusFlowConfig

T = TypeVar("T")
E = TypeVar("E")
C = TypeVar("C")
Tensors = tuple[torch.Tensor, ...]
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)
KNOWN: set[type[nn.Module]] = {
    *(nn.Linear, nn.Conv2d, nn.LayerNorm, nn.Embedding, nn.ModuleList),
    *(siglip.PatchEmbed, siglip.Attention, siglip.Mlp, siglip.Block, siglip.AttentionPool, siglip.VisionTransformer),
    *(uvit.RMSNorm, uvit.TimeEmbedding, uvit.GlobalResponseNorm, uvit.ConvNextBlock, uvit.MidBlock, uvit.Unpatchify),
    *(llama.Attention, llama.Mlp, llama.DecoderLayer),
}
"""Classes of modules whose forward the engine can compute. `unit` adds the classes that pass their calls to it."""


def unit(cls: type[T]) -> type[T]:
    """Mark a module class whose forward passes its calls to the engine."""
    KNOWN.add(cls)  # type: ignore[arg-type]
    return cls


class EngineOf(Generic[C, E]):
    """The engine E of one module with a config C. It is made for the first eligible call, and again after the weights
    have changed."""

    def __init__(self) -> None:
        self._root: Callable[[], tuple[nn.Module, C] | None] = lambda: None
        self._engine: E | None = None
        self._made_of: tuple[Any, ...] = ()
        self._failed: tuple[tuple[Any, ...], str] | None = None
        self._said: set[str] = set()
        self._lock = threading.RLock()
        self._sample: sharing.Sample | None = None

    def __deepcopy__(self, memo: object) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    def made(self, root: nn.Module, config: C) -> tuple[E, sharing.Shared]:
        """Make an engine from a module's parameters. Raises FlashJanusError if that is impossible."""
        raise NotImplementedError

    def link(self, root: Callable[[], tuple[nn.Module, C] | None]) -> None:
        """Set root(), which returns the model and its config, or None if the model was deleted and only a part of it is
        still in use."""
        self._root = root

    @property
    def engine(self) -> E | None:
        """The engine, or None if there is none yet."""
        return self._engine

    def adopt(self, engine: E, shared: sharing.Shared) -> None:
        """Use an engine that was made from the root's current parameters."""
        root = self._root()
        assert root is not None, "whoever made it has the root"
        with self._lock:
            self._engine, self._made_of, self._failed = engine, fingerprint(root[0]), None
            self._sample = shared.sample()

    def run(
        self,
        module: nn.Module,
        fast: Callable[[E], Tensors],
        slow: Callable[..., Tensors],
        inputs: Tensors,
        refusal: str | None = None,
    ) -> Tensors:
        """Return fast(engine), or slow(*inputs) if the call is not eligible. Gradients come from `slow`, which runs
        again when they are computed."""
        engine = self.eligible(module, refusal)
        if engine is None:
            return slow(*inputs)

        def alone() -> Tensors:
            with isolated(), torch.no_grad():  # ignores the caller's default device
                return fast(engine)

        parameters = [p for p in module.parameters() if p.requires_grad]
        if torch.is_grad_enabled() and (parameters or any(t.requires_grad for t in inputs)):
            results: Tensors = Recomputed.apply(  # type: ignore[no-untyped-call]
                alone, slow, len(inputs), *inputs, *parameters
            )
            return results
        return alone()

    def eligible(self, module: nn.Module, refusal: str | None = None) -> E | None:
        """The engine, if it computes the same as `module`. Otherwise None, after one warning that gives the reason."""
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return None
        root = self._root()
        if root is None:
            reason: str | None = (
                "the model that it belongs to was deleted, and the engine runs whole models; keep a reference to "
                "the model"
            )
        else:
            reason = refusal or self._reason(module, root[0])
        if reason is None:
            assert root is not None
            try:
                return self._current(*root)
            except OutOfMemoryError:
                raise
            except FlashJanusError as error:
                reason = str(error)
        if reason not in self._said:
            self._said.add(reason)
            warn(f"{type(module).__name__} runs on torch, not on the engine: {reason}.", ReferencePathWarning)
        return None

    def _reason(self, module: nn.Module, root: nn.Module) -> str | None:
        """The reason why the engine cannot compute this call, or None."""
        if module.training:
            return "the model is in training mode; call .eval() unless you train it"
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            return "autocast is on, which chooses a dtype for each operation; set the dtype by .to(dtype) instead"
        if any(getattr(all_modules, name, None) for name in _GLOBAL_HOOKS):
            return "hooks are registered for all modules, and the engine would not call them"
        for one in module.modules():
            own = one.__dict__
            if one is not module and (own[HOOKS[0]] or own[HOOKS[1]] or own[HOOKS[2]] or own[HOOKS[3]]):
                return f"{_name(one, root)} has hooks, and the engine would not call them"
            if type(one) not in KNOWN:
                return f"{_name(one, root)} is a {type(one).__name__}, whose forward may differ"
            if "forward" in own:
                return f"the forward of {_name(one, root)} was replaced"
        return None

    def _current(self, root: nn.Module, config: C) -> E:
        """The engine for the current weights. Raises FlashJanusError if none can be made."""
        with self._lock:
            state = fingerprint(root)
            if self._engine is not None and state == self._made_of and not (self._sample and self._sample.changed()):
                return self._engine
            if self._failed is not None and self._failed[0] == state:
                raise FlashJanusError(self._failed[1])
            self._engine = None  # first, so that there are never two engines in memory
            try:
                with isolated():
                    engine, shared = self.made(root, config)
            except FlashJanusError as error:
                self._failed = state, str(error)
                raise
            self.adopt(engine, shared)
            return engine


class Core(EngineOf["JanusFlowConfig", Engine]):
    """The engine of a `MultiModalityCausalLM`."""

    def made(self, root: nn.Module, config: JanusFlowConfig) -> tuple[Engine, sharing.Shared]:
        model, shared = sharing.engine_of(JanusFlow, root, config)
        return Engine(model), shared


class Recomputed(torch.autograd.Function):
    """Returns the results of `fast`, and computes gradients through `slow` at the same inputs."""

    @staticmethod
    def forward(ctx: Any, fast: Any, slow: Any, count: int, *tensors: torch.Tensor) -> Tensors:
        ctx.slow, ctx.count = slow, count
        ctx.save_for_backward(*tensors)
        return tuple(fast())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        tensors: Sequence[torch.Tensor] = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        inputs = [t.detach().requires_grad_(n) for t, n in zip(tensors[: ctx.count], needed, strict=False)]
        with torch.enable_grad():
            results = ctx.slow(*inputs)
        wanted = [*inputs, *tensors[ctx.count :]]
        asked = [t for t, n in zip(wanted, needed, strict=True) if n]
        kept = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
        found = torch.autograd.grad([r for r, _ in kept], asked, [g for _, g in kept], allow_unused=True)
        given = iter(found)
        return (None, None, None, *(next(given) if n else None for n in needed))


def _name(module: nn.Module, root: nn.Module) -> str:
    """The module's name in the whole model, so that a reason reads the same whichever module reports it."""
    return next((name for name, one in root.named_modules() if one is module), type(module).__name__)


def fingerprint(root: nn.Module) -> tuple[Any, ...]:
    """The address of each parameter and how often torch has written to it. A changed dtype or device, or a replaced
    parameter, has another address. Parameters that were made in inference mode have no count of writes."""
    parameters = [p for one in root.modules() for p in one._parameters.values() if p is not None]
    return tuple([(p.data_ptr(), _written(p)) for p in parameters])


def _written(tensor: torch.Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:  # made in inference mode; is_inference() no longer says so after .data was replaced
        return 0
