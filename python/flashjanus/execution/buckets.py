"""The sizes for which plans are made. On a GPU they are few, each is captured once, and rows and prompts are padded
to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from flashjanus.errors import InputError
from flashjanus.sampling import checks

LARGEST = 1 << 20


@dataclass(frozen=True)
class Buckets:
    """Sizes in ascending order; above the last one, its multiples. `(1,)` takes every size as it is.

    rows: images or conversations at once. prompt_tokens: prompt capacities. steps: evaluations. new_tokens: tokens of
    an answer.
    """

    rows: tuple[int, ...] = (1,)
    prompt_tokens: tuple[int, ...] = (16,)
    steps: tuple[int, ...] = (1,)
    new_tokens: tuple[int, ...] = (1,)

    @property
    def padded(self) -> bool:
        """True if a bucket may have more rows than were asked for."""
        return self.rows != (1,)

    def branches(self, guided: int, rows: int) -> int:
        """Unconditional branches of a bucket of `rows`: one for each guided row, or all or none if rows are padded."""
        return rows if self.padded and guided else guided

    def images(self, images: int, rows: int) -> int:
        """Images for which a bucket of `rows` conversations has room; at least one each if rows are padded."""
        return padded(max(images, rows), self.rows) if self.padded else images

    def __str__(self) -> str:
        def words(sizes: tuple[int, ...]) -> str:
            if sizes == (1,):
                return "as asked"
            listed = "" if len(sizes) == 1 else f"{', '.join(map(str, sizes))}, then "
            return f"{listed}multiples of {sizes[-1]}"

        return "; ".join(f"{name} {words(sizes)}" for name, sizes in asdict(self).items())

    @staticmethod
    def of(given: Mapping[str, Sequence[int]] | None, default: Buckets) -> Buckets:
        """`default`, with the sizes that `given` replaces by name. Raises InputError."""
        sizes = {name: getattr(default, name) for name in Buckets.__dataclass_fields__}
        for name, values in (given or {}).items():
            checks.choice("buckets", name, list(sizes))
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise InputError(f"buckets: expected a list of sizes for {name}, got {values!r:.80}")
            sizes[name] = tuple(sorted({checks.integer(f"buckets: {name}", v, 1, LARGEST) for v in values}))
        return Buckets(**sizes)


EXACT = Buckets()
"""For a CPU, where padding costs as much as work and a plan costs nothing. Prompts of similar length share a plan."""
PADDED = Buckets(
    rows=(1, 2, 4, 8, 16, 32),
    prompt_tokens=(32, 64, 128, 256, 512, 640, 1024, 2048),
    steps=(30, 50, 100),
    new_tokens=(128, 512, 1024),
)
"""For a GPU, where each plan is captured."""


def padded(size: int, sizes: Sequence[int]) -> int:
    """The smallest bucket that holds `size`: one of `sizes`, or a multiple of the last."""
    return next((s for s in sizes if s >= size), -(-size // sizes[-1]) * sizes[-1])
