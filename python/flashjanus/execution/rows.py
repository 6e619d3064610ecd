"""Rows that come and go between two steps, in one session of the bucket that they need."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.errors import OutOfMemoryError
from flashjanus.execution.runner import Runner


class Row(Protocol):
    """place: its row in the session, if it has one."""

    place: int | None


class Session(Protocol):
    """Memory of some rows."""

    rows: int

    @property
    def nbytes(self) -> int: ...

    def leave(self, row: int) -> None: ...


R = TypeVar("R", bound=Row)
S = TypeVar("S", bound=Session)


class Rows(ProcessBound, Generic[R, S]):
    """Before a step all rows move to another session where theirs has too many rows for them, or too little room.

    The idle rows of a bucket are no more than padding asks for. A row that comes takes a free place.
    """

    make: ClassVar[Callable[..., Any]]
    """make(runner, *bucket): a session."""
    counts: ClassVar[int]
    """Of a bucket's sizes, how many (the first) count rows: those are as needed, the others at least that."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.rows: list[R] = []
        self.session: S | None = None
        self._bucket: tuple[Any, ...] = ()
        self._places: list[R | None] = []
        self._without_memory: list[R] = []
        self._settled = False

    @abstractmethod
    def bucket(self, rows: Iterable[R]) -> tuple[int, ...]:
        """The smallest that holds `rows`."""

    @abstractmethod
    def join(self, session: S, place: int, row: R) -> None:
        """Begin a row there."""

    @abstractmethod
    def move(self, session: S, place: int, row: R, before: S) -> None:
        """Go on there with a row that `before` has."""

    def first_place(self, row: R) -> int:
        """Which of the free places a row takes: 0 the first, -1 the last."""
        return 0

    def placing(self) -> list[R]:
        """All rows, in the order in which they take places."""
        return self.rows

    def add(self, row: R) -> None:
        """A row that comes; where others wait for memory already, it waits as well."""
        (self._without_memory or self.rows).append(row)
        self._settled = False

    def remove(self, row: R) -> None:
        """Let a row go; with the last one the memory is given back. Rows that there was no memory for are back."""
        self.rows += self._without_memory
        self._without_memory = []
        self._settled = False
        self.rows.remove(row)
        if row.place is not None and self.session is not None:
            self.session.leave(row.place)
            self._places[row.place] = None
        row.place = None
        if not self.rows:
            self._release()

    def forget(self) -> None:
        """Let the rows of a step that failed go, and the memory as well, which is not to be used again. Rows that there
        was no memory for were not in it, and are back."""
        if self.session is not None:
            self.runner.dropped()
        self.session, self._bucket, self._places = None, (), []
        self.rows, self._without_memory = self._without_memory, []
        self._settled = False

    def settled(self) -> S:
        """The session, with the rows in it.

        Where there is no memory for all of them, those that came last are left aside until another goes. Raises
        OutOfMemoryError where there is none for a single one.
        """
        if self._settled and self.session is not None:
            return self.session
        while not self._fits(needed := self.bucket(self.rows)):
            try:
                self._move(needed)
            except OutOfMemoryError:
                unplaced = [row for row in self.rows if row.place is None]
                if not unplaced:  # all have a place, in more memory than they need
                    break
                if len(self.rows) == 1:
                    raise
                self.rows.remove(unplaced[-1])
                self._without_memory.insert(0, unplaced[-1])
        assert self.session is not None
        free = [place for place, row in enumerate(self._places) if row is None]
        for row in self.placing():
            if row.place is None:
                place = free.pop(self.first_place(row))
                self.join(self.session, place, row)
                self._places[place], row.place = row, place
        self._settled = True
        return self.session

    def _fits(self, needed: tuple[int, ...]) -> bool:
        held = self._bucket
        same = bool(held) and held[: self.counts] == needed[: self.counts]
        return same and all(h >= n for h, n in zip(held, needed, strict=True))

    def _move(self, needed: tuple[int, ...]) -> None:
        session: S = self.runner.take(self.make, *needed)
        try:
            places = self._moved(session)
        except BaseException:
            self.runner.dropped()
            raise
        self._release()
        self.session, self._bucket, self._places = session, needed, places
        for place, moved in enumerate(places):
            if moved is not None:
                moved.place = place

    def _moved(self, session: S) -> list[R | None]:
        """The places there of all rows that have one here."""
        places: list[R | None] = [None] * session.rows
        for place in range(session.rows):  # rows of somebody who had it before
            session.leave(place)
        free = list(range(session.rows))
        for row in self.placing():
            place = free.pop(self.first_place(row))  # which stays free for a row that comes
            if self.session is not None and row.place is not None:
                self.move(session, place, row, self.session)
                places[place] = row
        return places

    def _release(self) -> None:
        if self.session is not None:
            self.runner.give(self.session, self.make, *self._bucket)
        self.session, self._bucket, self._places = None, (), []
