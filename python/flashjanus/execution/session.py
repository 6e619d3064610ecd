"""Memory of one program whose rows all have the same size: images or latents to encode, velocities to decode."""

from __future__ import annotations

from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.execution.runner import Runner


class ProgramSession(ProcessBound):
    """`program` for `count` rows; `size` is the symbol of its rows, such as R."""

    def __init__(self, runner: Runner, program: str, size: str, count: int) -> None:
        self.executor = runner.executor(program, **{size: count})

    @property
    def nbytes(self) -> int:
        return self.executor.nbytes
