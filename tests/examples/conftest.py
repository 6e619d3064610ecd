"""The example programs by their plain names, and one miniature training run for all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

SHAPES = Path(__file__).resolve().parents[2] / "examples" / "shapes"
sys.path.insert(0, str(SHAPES))

if TYPE_CHECKING:
    from stages import Trainer


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and the Trainer that it left."""

    folder: Path
    trainer: Trainer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order: what is compared bit for bit must not depend on the machine's load."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def miniature(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All stages of `train.py --miniature`."""
    from recipe import MINIATURE
    from train import train

    folder = tmp_path_factory.mktemp("miniature")
    return Run(folder, train(folder, MINIATURE, 0, torch.device("cpu")))
