"""The parts of a step for a caller that runs the loop itself: sessions of the programs of `model/parts.py`."""

from __future__ import annotations

import weakref
from collections import OrderedDict

import torch

from flashjanus.engine.ops.flow_update import unpatchify
from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.engine.runtime.entry import entry
from flashjanus.engine.runtime.executor import Executor, allocate_states
from flashjanus.execution.buckets import padded
from flashjanus.execution.runner import Runner
from flashjanus.execution.session import ProgramSession
from flashjanus.execution.text import encode_images

KEPT_READERS = 3
"""The most token counts for which a session keeps plans; each plan has its own arena."""


class EmbedsSession(ProcessBound):
    """Keys and values of B rows in S slots, written by the tokens that are read into them."""

    @entry
    def __init__(self, runner: Runner, rows: int, slots: int) -> None:
        self._runner = weakref.ref(runner)
        self.rows, self.slots = rows, slots
        self.states = allocate_states(runner.plan("read_embeds", B=rows, N=1, S=slots), runner.gpu)
        self._readers: OrderedDict[tuple[int, bool], Executor] = OrderedDict()

    @property
    def nbytes(self) -> int:
        arenas = sum(reader.nbytes - self._state_bytes for reader in self._readers.values())
        return self._state_bytes + arenas

    @property
    def _state_bytes(self) -> int:
        return sum(state.nbytes for state in self.states.values())

    @entry
    def read(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        kv_start: torch.Tensor,
        kv_end: torch.Tensor,
    ) -> torch.Tensor:
        """Hidden states (B, N, D) after the final norm, in the residual dtype, for embeds (B, N, D).

        positions, slots, kv_end (B, N), kv_start (B,), on the CPU: as in the attention rule. The result is in the
        session's memory and is overwritten by the next read.
        """
        follow = slots.shape[1] == 1 or bool((slots[:, 1:] == slots[:, :-1] + 1).all())
        causal = follow and bool((kv_end == slots + 1).all()) and bool((slots[:, 0] >= kv_start).all())
        reader = self._reader(embeds.shape[1], causal)
        reader.inputs["embeds"].copy_(embeds)
        numbers = dict(positions=positions, slots=slots, kv_start=kv_start, kv_end=kv_end)
        for name, value in numbers.items():
            reader.host[name].copy_(value)
        reader.upload()
        reader.run()
        return reader.outputs["hidden"]

    def take_keys(self, other: EmbedsSession, count: int) -> None:
        """Copy the first `count` slots of `other`."""
        for name, state in self.states.items():
            state[:, :, :count].copy_(other.states[name][:, :, :count])

    def _reader(self, tokens: int, causal: bool) -> Executor:
        key = tokens, causal
        if key not in self._readers:
            runner = self._runner()
            assert runner is not None, "whoever reads has the model"
            sizes = dict(B=self.rows, N=tokens, S=self.slots)
            # a capture on a GPU sets the states to zero
            kept = None if runner.gpu is None else {name: state.clone() for name, state in self.states.items()}
            self._readers[key] = runner.executor(
                "read_embeds" if causal else "read_embeds_masked", self.states, None, **sizes
            )
            for name, state in (kept or {}).items():
                self.states[name].copy_(state)
            if len(self._readers) > KEPT_READERS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(key)
        return self._readers[key]


@entry
def encode_latents(runner: Runner, z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x (R, h, w, C) and t_emb (R, D), in the residual and the vector dtype, of latents (R, c, L, L) at times (R,)."""
    rows = len(z)
    with runner.lease(ProgramSession, "encode_latents", "R", padded(rows, runner.buckets.rows)) as session:
        executor = session.executor
        executor.inputs["z"][:rows].copy_(z)
        executor.host["t"][:rows, 0].copy_(t)
        executor.upload()
        executor.run()
        return executor.outputs["x"][:rows].clone(), executor.outputs["t_emb"][:rows, 0].clone()


@entry
def decode_velocity(runner: Runner, h: torch.Tensor, x: torch.Tensor, t_emb: torch.Tensor) -> torch.Tensor:
    """Velocity (R, c, L, L) of aligned hidden states h (R, h w, C), the encoder's x (R, h, w, C), t_emb (R, D)."""
    rows = len(h)
    with runner.lease(ProgramSession, "decode_velocity", "R", padded(rows, runner.buckets.rows)) as session:
        executor = session.executor
        executor.inputs["h"][:rows].copy_(h)
        executor.inputs["x"][:rows].copy_(x)
        executor.inputs["t_emb"][:rows, 0].copy_(t_emb)
        executor.run()
        velocity = executor.outputs["velocity"][:rows]
        return unpatchify(velocity, runner.config.gen_decoder.out_channels).clone()


@entry
def visual_features(runner: Runner, pixels: torch.Tensor) -> torch.Tensor:
    """Features (I, N, W), before the aligner, of normalized pixels (I, 3, S, S)."""
    return encode_images(runner, pixels, "hidden")
