"""Runs diffusers' AutoencoderKL on given weights and latents; prints the seconds of each decode as one JSON line.

    python diffusers_script.py FOLDER DEVICE REPEATS

FOLDER holds config.json and weights.safetensors (the decoder's weights, and "latents"); the script writes
image.safetensors there. It needs only torch, safetensors and diffusers: its Python need not have flashjanus.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def build(config: dict[str, Any], state: dict[str, torch.Tensor], device: str) -> Any:
    """Build only the decoder: the encoder gets no weights and is dropped."""
    with torch.device("meta"):
        vae = importlib.import_module("diffusers").AutoencoderKL(**config)
    found = vae.load_state_dict(state, strict=False, assign=True)
    left = [name for name in found.missing_keys if not name.startswith(("encoder.", "quant_conv."))]
    if left or found.unexpected_keys:
        sys.exit(f"other weights than AutoencoderKL's: missing {left[:3]}, left over {found.unexpected_keys[:3]}")
    vae.encoder = vae.quant_conv = None
    return vae.to(device).eval()


def main(folder: Path, device: str, repeats: int) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    state = load_file(folder / "weights.safetensors")
    latents = state.pop("latents").to(device)
    vae = build(config, state, device)
    dtype = vae.decoder.conv_in.weight.dtype
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        image = vae.decode((latents / config["scaling_factor"]).to(dtype)).sample
        if device != "cpu":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    save_file({"image": image.float().cpu().contiguous()}, folder / "image.safetensors")
    print(json.dumps(seconds[1:]))


if __name__ == "__main__":
    with torch.inference_mode():
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
