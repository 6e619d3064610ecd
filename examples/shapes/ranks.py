"""Several processes train one model together, each on its share of every step; two of one thread beat one of two.

Without `torch.distributed.init_process_group` there is one process, and all of this does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(count: int) -> int:
    """What one process takes of `count`. Raises ValueError where that is no whole number."""
    if count % ranks():
        raise ValueError(f"expected batches that {ranks()} processes can share evenly, got one of {count}")
    return count // ranks()


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through the block before the others enter it, and find the files that it left."""
    if rank() > 0:
        dist.barrier()
    yield
    if ranks() > 1 and rank() == 0:
        dist.barrier()


@torch.no_grad()
def spread(tensors: Sequence[Tensor]) -> None:
    """Gives every process the first one's values."""
    if ranks() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Puts the mean of all processes' gradients in every process; those that are None are None in each."""
    if ranks() == 1:
        return
    used = [(p, p.grad) for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for _, gradient in used])
    dist.all_reduce(flat)
    flat /= ranks()
    for (p, _), part in zip(used, torch.split(flat, [p.numel() for p, _ in used]), strict=True):
        p.grad = part.view_as(p)
