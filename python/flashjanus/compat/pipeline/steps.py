"""The actions after each step of a pipeline's call: progress bar, callback, interrupt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from flashjanus.api.janusflow import JanusFlow
from flashjanus.errors import InputError
from flashjanus.sampling import checks

StepEnd = Callable[[Any, int, torch.Tensor, dict[str, Any]], Mapping[str, Any]]
TENSORS = ("latents", "pred_original_sample")
"""The tensors that a callback may request."""


class Interrupted(Exception):
    """The pipeline's `_interrupt` was set. latents: (B, c, H, W), those of the current batch."""

    def __init__(self, latents: torch.Tensor) -> None:
        super().__init__("interrupted")
        self.latents = latents


class Steps:
    """The attributes of a pipeline that diffusers' callbacks use."""

    def __init__(self) -> None:
        super().__init__()
        self._guidance, self._evaluations = 2.0, 0
        self._interrupted, self._between = False, True

    @property
    def guidance_scale(self) -> float:
        """The guidance of the last call."""
        return self._guidance

    @property
    def _guidance_scale(self) -> float:
        return self._guidance

    @_guidance_scale.setter
    def _guidance_scale(self, value: object) -> None:
        raise InputError(
            f"_guidance_scale: cannot be set, stays {self._guidance:g}, got {value!r:.80}; to end guidance at t, "
            "pass guidance_interval=(0.0, t) to the call"
        )

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance != 1

    @property
    def num_timesteps(self) -> int:
        """The number of steps of the last call."""
        return self._evaluations

    @property
    def interrupt(self) -> bool:
        """Whether the last call was told to end. A callback or another thread does that by setting `_interrupt`."""
        return self._interrupted

    @property
    def _interrupt(self) -> bool:
        return self._interrupted

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        if value and not self._between:
            raise InputError(
                "_interrupt: expected a call with callback_on_step_end, which can end between its steps, got one "
                "without"
            )
        self._interrupted = bool(value)


class Step:
    """Advances the progress bar after each step and calls the user's callback."""

    def __init__(self, pipe: Any, bar: Any, callback: StepEnd | None, wanted: Sequence[str]) -> None:
        self.pipe, self.bar, self.callback, self.wanted = pipe, bar, callback, wanted

    def __call__(self, model: JanusFlow, step: int, t: float, state: dict[str, Any]) -> Mapping[str, Any]:
        self.bar.update()
        if self.callback is None and not self.pipe.interrupt:
            return state
        if self.callback is None:
            raise Interrupted(state["latents"].clone())
        given = {name: state[name] for name in self.wanted}
        returned = self.callback(self.pipe, step, torch.tensor(t, device="cpu", dtype=torch.float32), given)
        if not isinstance(returned, Mapping):
            raise InputError(f"callback_on_step_end: expected it to return a dict, got {returned!r:.80}")
        latents = returned.get("latents", state["latents"])
        if self.pipe.interrupt:
            raise Interrupted(checks.tensor("latents", latents, state["latents"].shape, checks.FLOATS).float())
        return {"latents": latents}


def tensors_of(callback: Any, names: Sequence[str] | None) -> Sequence[str]:
    """The tensors that the callback names in `tensor_inputs`, as diffusers' PipelineCallback does, or else `names`.
    Raises InputError."""
    names = getattr(callback, "tensor_inputs", names)
    others = [name for name in names or () if name not in TENSORS]
    if isinstance(names, str) or others:
        raise InputError(
            f"callback_on_step_end_tensor_inputs: expected a list of {', '.join(map(repr, TENSORS))}, got {names!r:.80}"
            "; prompts are not tensors here, and guidance_interval=(0.0, t) of the call ends guidance at t"
        )
    return names or ()
