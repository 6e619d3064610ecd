"""Keeps track of admitted jobs, of events to return, and of how jobs end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

import torch

from flashjanus.errors import DeviceError, FlashJanusError, OutOfMemoryError
from flashjanus.scheduling.requests import Event, Failed, Handle

Piece: TypeAlias = Generator[None, None, None]
"""Work of one job that runs between steps, and pauses where other work may run first."""


@dataclass(eq=False)
class Work:
    """An admitted job. size: its rows of images and of answers; nbytes: the bytes of their keys and values.

    withdraw: removes its rows, wherever they are. again: makes a new piece after one that ran out of memory; without it
    the job begins anew.
    """

    handle: Handle
    size: tuple[int, int]
    nbytes: int
    withdraw: Callable[[], None]
    again: Callable[[], Piece] | None = None


class Book:
    """Waiting jobs, admitted jobs with their pieces, and events that nobody has read yet.

    full: an admitted job found no memory, so no job is admitted until one has ended.
    """

    def __init__(self) -> None:
        self.queue: list[Handle] = []
        self.works: dict[Handle, Work] = {}
        self.pieces: deque[tuple[Work, Piece]] = deque()
        self.full = False
        self._without_memory: list[tuple[Work, Piece]] = []
        self.events: list[Event] = []

    def wait(self, handle: Handle) -> None:
        """Queue a job. The smaller its priority and the longer it has waited, the earlier it begins."""
        self.queue.append(handle)
        self.queue.sort(key=lambda h: (h.priority, h.order))

    def tell(self, event: Event) -> None:
        self.events.append(event)

    def end(self, handle: Handle, event: Event) -> None:
        """End a job: remove its rows and pieces, and queue `event`."""
        if handle.ended:
            return
        handle.ended = True
        if handle in self.queue:
            self.queue.remove(handle)
        if handle in self.works:
            self._withdraw(self.works.pop(handle))
            self.pieces.extend(self._without_memory)
            self._without_memory, self.full = [], False
        self.tell(event)

    def next_piece(self) -> None:
        """Run the first piece up to its next pause. If it fails, its job gets the error."""
        work, piece = self.pieces.popleft()  # out of reach of whatever ends the job meanwhile
        try:
            next(piece)
        except StopIteration:
            return
        except OutOfMemoryError as error:
            self.out_of_memory(work, error)
        except FlashJanusError as error:
            self.end(work.handle, Failed(work.handle, error))
        except BaseException as error:
            self.end(work.handle, Failed(work.handle, cut_short(error)))
            raise
        else:
            self.pieces.appendleft((work, piece))

    def out_of_memory(self, work: Work, error: OutOfMemoryError) -> None:
        """Let a job that found no memory wait until another ends; if no other is running, the job fails."""
        if len(self.works) - len(self._without_memory) == 1:
            self.end(work.handle, Failed(work.handle, error))
            return
        self.full = True
        if work.again is not None:
            self._without_memory.append((work, work.again()))
            return
        self._withdraw(self.works.pop(work.handle))
        self.wait(work.handle)

    def _withdraw(self, work: Work) -> None:
        own = [piece for other, piece in (*self.pieces, *self._without_memory) if other is work]
        self.pieces = deque((other, piece) for other, piece in self.pieces if other is not work)
        self._without_memory = [(other, piece) for other, piece in self._without_memory if other is not work]
        for piece in own:
            piece.close()
        work.again = None  # it refers to the work
        work.withdraw()


def cut_short(error: BaseException) -> FlashJanusError:
    """The error for jobs that were in a step or a piece that `error` ended; their rows are lost."""
    no_memory = isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemoryError)
    told = (OutOfMemoryError if no_memory else DeviceError)(
        f"{type(error).__name__} interrupted the work on this job; submit it again"
    )
    told.__cause__ = error
    return told
