"""Check every Triton implementation over its op's cases in Triton's interpreter: run_triton_interpreted.py OUTPUT.

A program of its own, because Triton reads TRITON_INTERPRET when a kernel is defined. Writes JSON: by case, the largest
error in units of the allowed one, or the fault in words. Cases are in float32 and float16: the interpreter's products
of bfloat16 are wrong and its conversions to it truncate, so bfloat16 is left to the compiled kernels.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch
from flashjanus.engine.ops import Op, all_ops
from op_check import check, make_call, serving

CUDA = torch.device("cuda")


def check_case(op: Op, index: int, dtype: torch.dtype) -> float | str | None:
    """Error in units of the allowed one, what went wrong, or None where the kernel does not serve the case."""
    call = make_call(op, op.cases[index], dtype, False)
    if "triton" not in serving(op, call, CUDA):
        return None
    try:
        return check(op, call, ["triton"])["triton"]
    except Exception:  # the fault belongs to this case's test, whatever it is
        return traceback.format_exc()


if __name__ == "__main__":
    results = {
        f"{op.name}-{i}-{str(dtype).removeprefix('torch.')}": check_case(op, i, dtype)
        for op in all_ops().values()
        if "triton" in op.implementations
        for i in range(len(op.cases))
        for dtype in (torch.float32, torch.float16)
    }
    Path(sys.argv[1]).write_text(json.dumps(results))
