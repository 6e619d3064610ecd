from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus.checkpoint import JanusFlowConfig, weight_layout
from safetensors.torch import save_file

# Growth of the resident set, mapped file pages included, from before the files are opened to its peak.
MEASURE = """
import gc, json, sys, torch
from flashjanus.checkpoint import Checkpoint, load_weights, weight_layout

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
torch.zeros(8).to(dtype).sum(dtype=torch.float32)
gc.collect()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
before = status("VmRSS")
found = Checkpoint.open(folder)
weights = load_weights(weight_layout(found.config), found.weights, matrix_dtype=dtype, vector_dtype=torch.float32)
size = sum(tensor.untyped_storage().nbytes() for tensor in weights.values())
print(json.dumps({"growth": status("VmHWM") - before, "size": size}))
"""

MEASURE_QUANTIZE = f"""
from pathlib import Path
from flashjanus.checkpoint.quantize import quantize_checkpoint
{MEASURE.partition("found =")[0]}
quantize_checkpoint(Checkpoint.open(folder), Path(folder, "int8"))
print(json.dumps({{"growth": status("VmHWM") - before}}))
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """About 50M parameters, spread as in the published model: the largest tensor is a tenth of all."""
    golden = Path(__file__).parents[1] / "golden" / "thin.config.json"
    data = json.loads(golden.read_text())
    data["language_config"].update(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=12, vocab_size=9600, num_attention_heads=8
    )
    data["language_config"]["num_key_value_heads"] = 8
    data["vision_und_enc_config"]["params"] = {
        "image_size": 384, "model_name": "small", "width": 256, "layers": 2, "heads": 4, "patch_size": 16,
        "mlp_ratio": 4, "select_layer": -1,
    }  # fmt: skip
    for key, width in (("vision_gen_enc_config", "channels"), ("vision_gen_dec_config", "in_channels")):
        data[key]["params"].update(hidden_size=512, block_out_channels=[192], **{width: 192})
    layout = weight_layout(JanusFlowConfig.from_dict(data))
    return data, {s.names[0]: torch.ones(s.shapes[0]) for target in layout for s in target.sources}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("stored", "dtype", "kind"),
    [
        (torch.float32, "float32", "shards"),
        (torch.float32, "bfloat16", "safetensors"),
        (torch.bfloat16, "bfloat16", "bin"),
    ],
)
def test_peak_memory_is_at_most_a_quarter_above_the_weights(
    big: tuple[dict[str, Any], dict[str, torch.Tensor]], tmp_path: Path, stored: torch.dtype, dtype: str, kind: str
) -> None:
    data, state = big
    state = {name: tensor.to(stored) for name, tensor in state.items()}
    (tmp_path / "config.json").write_text(json.dumps(data))
    if kind == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        parts = 4 if kind == "shards" else 1
        for i in range(parts):
            save_file(dict(list(state.items())[i::parts]), tmp_path / f"part-{i}.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), dtype], capture_output=True, text=True, check=True, timeout=120
    )
    measured = json.loads(run.stdout)
    assert measured["size"] > (180e6 if dtype == "float32" else 90e6)
    assert measured["growth"] >= 0.95 * measured["size"]
    assert measured["growth"] <= 1.25 * measured["size"], f"{measured['growth'] / measured['size']:.2f}x"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_quantizing_holds_about_one_tensor(big: tuple[dict[str, Any], dict[str, torch.Tensor]], tmp_path: Path) -> None:
    data, state = big
    (tmp_path / "config.json").write_text(json.dumps(data))
    save_file(state, tmp_path / "model.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", MEASURE_QUANTIZE, str(tmp_path), "float32"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    growth, largest = json.loads(run.stdout)["growth"], max(tensor.nbytes for tensor in state.values())
    assert growth <= 2 * largest < sum(tensor.nbytes for tensor in state.values()) / 4, f"{growth / largest:.2f}x"
