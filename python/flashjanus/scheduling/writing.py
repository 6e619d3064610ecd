"""Text jobs: conversations are read, then all answers get one token at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flashjanus.errors import OutOfMemoryError
from flashjanus.execution.likelihood import Likelihood
from flashjanus.execution.prefixes import PrefixStore
from flashjanus.execution.reading import reading
from flashjanus.execution.runner import Runner
from flashjanus.execution.text_rows import TextRow, TextRows
from flashjanus.scheduling.book import Book, Piece, Work, cut_short
from flashjanus.scheduling.requests import Failed, Finished, Handle, TextJob, Token


@dataclass(eq=False)
class Written:
    """The row of a text job."""

    work: Work
    job: TextJob
    row: TextRow


class Writing:
    """The text jobs of a scheduler."""

    def __init__(self, runner: Runner, prefixes: PrefixStore, book: Book) -> None:
        self._runner, self._prefixes, self._book = runner, prefixes, book
        self._rows = TextRows(runner)
        self._owners: dict[TextRow, Written] = {}
        self._ahead: Callable[[], list[tuple[TextRow, int, Likelihood | None]]] | None = None

    @property
    def ready(self) -> bool:
        """True if an answer waits for its next token."""
        return bool(self._rows.rows)

    def begin(self, work: Work, job: TextJob) -> Piece:
        """Read a job's conversation, then add its row."""
        likeliest = job.logprobs if job.room else None
        read = yield from reading(self._runner, self._prefixes, job.request, job.image_tokens, likeliest)
        work.handle.cached = read.cached
        if job.room == 0:
            self._book.end(work.handle, Finished(work.handle, read.logits))
            return
        row = TextRow(job.request, read.prefix, job.room, job.eos, job.logprobs)
        written = self._owners[row] = Written(work, job, row)
        self._rows.add(row)
        self._token(written, read.token, read.likelihood)

    def withdraw(self, handle: Handle) -> None:
        for row in [row for row, written in self._owners.items() if written.work.handle is handle]:
            del self._owners[row]
            self._rows.remove(row)
        if not self._rows.rows:
            self._ahead = None

    def step(self) -> None:
        """Decode one token of every answer. A GPU may start on the next ones before the host has read these."""
        try:
            launched = self._rows.step()
            before, self._ahead = self._ahead, launched if self._runner.gpu is not None else None
            found = launched() if self._ahead is None else [] if before is None else before()
        except OutOfMemoryError as error:  # and there is no other answer
            handle = self._owners[self._rows.rows[-1]].work.handle
            self._book.end(handle, Failed(handle, error))
            return
        except BaseException as error:
            self._lose(error)
            raise
        for row, token, likelihood in found:
            if row in self._owners:  # its job may have ended meanwhile
                self._token(self._owners[row], token, likelihood)

    def _token(self, written: Written, token: int, likelihood: Likelihood | None) -> None:
        handle, job, row = written.work.handle, written.job, written.row
        row.tokens.append(token)
        text = "" if job.answer is None else job.answer.push(token)
        told = () if likelihood is None else (likelihood.logprob, likelihood.likeliest)
        self._book.tell(Token(handle, token, text, *told))
        if row.finished or (job.answer is not None and job.answer.ended):
            if row.place is not None:
                self._prefixes.put_conversation(self._rows.read(row))
            rest = "" if job.answer is None else job.answer.finish()
            self._book.end(handle, Finished(handle, [*row.tokens], rest))

    def _lose(self, error: BaseException) -> None:
        """End the jobs of a step that was cut short, because their rows hold unusable data."""
        lost = [self._owners.pop(row).work.handle for row in self._rows.rows]
        self._rows.forget()
        self._ahead = None
        for handle in lost:
            self._book.end(handle, Failed(handle, cut_short(error)))
