"""Rows that come and go between steps, in one session of the smallest bucket that holds them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.errors import OutOfMemoryError
from flashjanus.execution.runner import Runner


class Row(Protocol):
    """place: the row's place in the session, if it has one."""

    place: int | None


class Session(Protocol):
    """Memory of several rows."""

    rows: int

    @property
    def nbytes(self) -> int: ...

    def leave(self, row: int) -> None: ...


R = TypeVar("R", bound=Row)
S = TypeVar("S", bound=Session)


class Rows(ProcessBound, Generic[R, S]):
    """Before a step, all rows move to another session if theirs is too large or too small for them.

    A bucket has no more idle rows than its padding requires. A new row takes a free place.
    """

    make: ClassVar[Callable[..., Any]]
    """make(runner, *bucket) creates a session."""
    counts: ClassVar[int]
    """How many of a bucket's sizes, counted from the first, are numbers of rows. Those must match exactly; the
    others may be larger than needed."""

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
        """The smallest bucket that holds `rows`."""

    @abstractmethod
    def join(self, session: S, place: int, row: R) -> None:
        """Begin a row in this place."""

    @abstractmethod
    def move(self, session: S, place: int, row: R, before: S) -> None:
        """Continue in this place with a row of the session `before`."""

    def first_place(self, row: R) -> int:
        """The index of the free place that a row takes: 0 for the first, -1 for the last."""
        return 0

    def placing(self) -> list[R]:
        """All rows, in the order in which they take places."""
        return self.rows

    def add(self, row: R) -> None:
        """Add a row; if others already wait for memory, it waits too."""
        (self._without_memory or self.rows).append(row)
        self._settled = False

    def remove(self, row: R) -> None:
        """Remove a row; with the last one, the memory is given back. Rows that waited for memory rejoin."""
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
        """Remove the rows of a step that failed, and drop the memory, which must not be reused. Rows that waited for
        memory were not in the step, and rejoin."""
        if self.session is not None:
            self.runner.dropped()
        self.session, self._bucket, self._places = None, (), []
        self.rows, self._without_memory = self._without_memory, []
        self._settled = False

    def settled(self) -> S:
        """The session, with the rows in it.

        If there is not enough memory for all rows, the last ones to come are set aside until another leaves. Raises
        OutOfMemoryError if there is not enough for a single row.
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
        """Move the rows that have a place to `session`, and return the row in each of its places."""
        places: list[R | None] = [None] * session.rows
        for place in range(session.rows):  # rows that the session's previous owner left
            session.leave(place)
        free = list(range(session.rows))
        for row in self.placing():
            place = free.pop(self.first_place(row))  # a row that has no place yet joins here later
            if self.session is not None and row.place is not None:
                self.move(session, place, row, self.session)
                places[place] = row
        return places

    def _release(self) -> None:
        if self.session is not None:
            self.runner.give(self.session, self.make, *self._bucket)
        self.session, self._bucket, self._places = None, (), []
