"""Shields every public method from the caller's torch settings and thread state."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import wraps
from types import GeneratorType
from typing import ParamSpec, TypeVar, cast

from .isolation import isolated, within

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def entry(method: Callable[P, R]) -> Callable[P, R]:
    """Run `method` within `isolated`. If it returns a generator, each step runs so, since the caller's state may have
    changed in between."""

    @wraps(method)
    def entered(*args: P.args, **kwargs: P.kwargs) -> R:
        if within():  # called from another entry: a step of the scheduler passes through several of these
            return method(*args, **kwargs)
        with isolated():
            result = method(*args, **kwargs)
        return cast(R, _stepwise(result)) if isinstance(result, GeneratorType) else result

    return entered


def _stepwise(steps: Generator[T, None, None]) -> Iterator[T]:
    try:
        while True:
            with isolated():
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step
    finally:
        with isolated():
            steps.close()
