"""Run flashjanus.triton_kernels.cfg_euler on saved cases: run_triton_interpreted.py INPUT OUTPUT.

A program of its own, because Triton reads TRITON_INTERPRET when a kernel is defined. Every buffer lies between guards
of NaN (or of a large number), which come back with the result.
"""

from __future__ import annotations

import sys

import torch
from flashjanus.triton_kernels.cfg_euler import launch

if __name__ == "__main__":
    results = []
    for wholes, shapes, guard in torch.load(sys.argv[1]):
        launch(*(whole[guard:-guard].view(shape) for whole, shape in zip(wholes, shapes, strict=True)))
        results.append(wholes)
    torch.save(results, sys.argv[2])
