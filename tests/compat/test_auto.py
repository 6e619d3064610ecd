"""transformers' Auto classes give our classes, in whichever order a program imports things."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.compat.janusflow import MultiModalityCausalLM, VLChatProcessor
from flashjanus.compat.registration import OLDEST
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
from transformers import __version__ as version

CONFIG = json.loads((Path(__file__).parents[1] / "golden/thin.config.json").read_text())


def test_this_version_is_one_that_is_supported():
    assert tuple(map(int, version.split(".")[:2])) >= OLDEST


def test_a_config(untrained_folder):
    config = AutoConfig.from_pretrained(untrained_folder, trust_remote_code=True)
    raw = json.loads((untrained_folder / "config.json").read_text())
    assert config.model_type == "multi_modality"
    assert config.language_config.hidden_size == raw["language_config"]["hidden_size"]
    assert config.vision_und_enc_config.params.image_size == raw["vision_und_enc_config"]["params"]["image_size"]
    assert config.vision_gen_dec_config.cls == "ShallowUViTDecoder"
    assert JanusFlowConfig.from_dict(config.to_dict()) == JanusFlowConfig.from_dict(raw)


def test_a_config_is_written_as_it_is_read(tmp_path):
    raw = {**CONFIG, "language_config": {**CONFIG["language_config"], "rope_theta": 5000.0}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = AutoConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/config.json").read_text())
    assert JanusFlowConfig.from_dict(saved) == JanusFlowConfig.from_dict(raw)
    assert JanusFlowConfig.from_dict(raw).language.rope_theta == 5000.0


def test_a_model_and_its_processor(untrained_folder):
    """With the options of scripts that circulate."""
    config = AutoConfig.from_pretrained(untrained_folder)
    config.language_config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_pretrained(
        untrained_folder, language_config=config.language_config, trust_remote_code=True, torch_dtype=torch.float32
    )
    assert type(model) is MultiModalityCausalLM
    assert (model.dtype, model.training) == (torch.float32, False)
    processor = AutoProcessor.from_pretrained(untrained_folder, trust_remote_code=True)
    assert type(processor) is VLChatProcessor
    ids = torch.tensor([processor.tokenizer.encode("Hello")])
    embeds = model.language_model.get_input_embeddings()(ids)
    written = model.language_model.generate(inputs_embeds=embeds, max_new_tokens=3, eos_token_id=None)
    assert written.shape == (1, 3)
    again = AutoModelForCausalLM.from_pretrained(
        str(untrained_folder), config=config, torch_dtype="auto", low_cpu_mem_usage=True, local_files_only=True
    )
    assert again.dtype == torch.bfloat16
    untrained = AutoModelForCausalLM.from_config(config, torch_dtype=torch.float16)
    assert type(untrained) is MultiModalityCausalLM
    assert untrained.dtype == torch.float16


@pytest.mark.long
@pytest.mark.parametrize(
    "code",
    [
        "import flashjanus.compat; from transformers import AutoConfig, AutoProcessor",
        "import flashjanus.compat; from transformers import AutoModel, AutoConfig, AutoProcessor",
        "import flashjanus.compat; from transformers import LlamaConfig, AutoConfig, AutoProcessor",
        "from transformers import AutoConfig, AutoProcessor; import flashjanus.compat.janusflow",
    ],
)
def test_the_order_of_imports_does_not_count(untrained_folder, code):
    check = (
        f"{code}; config, processor = (auto.from_pretrained({str(untrained_folder)!r}) for auto in "
        "(AutoConfig, AutoProcessor)); print(type(config).__module__, type(processor).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["flashjanus.compat.auto", "VLChatProcessor"]
