"""What every public method goes through: the state that the caller has torch and its threads in does not count."""

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
    """`method` within `isolated`; where it returns a generator, each of its steps, which the caller may ask for in
    another state."""

    @wraps(method)
    def entered(*args: P.args, **kwargs: P.kwargs) -> R:
        if within():  # a caller of ours: a step of the scheduler is some of these deep
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
