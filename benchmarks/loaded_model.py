"""Say what `flashjanus.accelerate` shares with the official model, and whether it draws what its own loop draws.

    PYTHON benchmarks/loaded_model.py --official-repo JANUS --official-script official.py

JANUS and official.py are those of drop_in.py. PYTHON is the interpreter of an environment that has both FlashJanus and
the dependencies of the official code. The model gets seeded weights. Prints one JSON object: bytes of the model's
parameters that are shared, copied, and not used, and the relative difference of the latents.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter

import flashjanus
import torch
from drop_in import PROMPT_TOKENS, generate, official, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official-repo", required=True, help="a checkout of deepseek-ai/Janus")
    parser.add_argument("--official-script", required=True, help="official.py")
    parser.add_argument("--size", choices=["full", "thin"], default="full")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--numerics", choices=["exact", "official"], default="exact")
    parser.add_argument("--steps", type=int, default=2, help="Euler steps; the README has 30")
    args = parser.parse_args()

    model = official(args, getattr(torch, args.dtype))
    seed(model)
    expected = generate(model, 0, 1, args.steps)
    fast = flashjanus.accelerate(model, numerics=args.numerics)
    report = fast.report
    ids = [n * 7 % 1000 for n in range(PROMPT_TOKENS + 1)]  # those of drop_in.generate, as the noise
    noise = torch.randn((1, 4, 48, 48), dtype=model.dtype, generator=torch.Generator().manual_seed(0))
    found = fast.sample_latents([ids], noise.float(), 2.0, args.steps)
    again = generate(model, 0, 1, args.steps)
    print(
        json.dumps(
            {
                **{name: getattr(args, name) for name in ("size", "dtype", "numerics", "steps")},
                "torch": torch.__version__,
                "bytes": {name: getattr(report, name) for name in ("shared", "copied", "unused")},
                "share": report.share,
                "copies": Counter(report.copies.values()),
                "relative_difference": float((found - expected).norm() / expected.norm()),
                "own_loop_is_as_before": torch.equal(again, expected),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
