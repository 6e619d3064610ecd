"""Draws pictures of a prompt by the calls of the official code's README: its own loop over Euler steps.

Written for `janus.janusflow.models` and `diffusers.models`; only the two import lines below name FlashJanus instead.

    python examples/official/generate.py --model PATH --vae PATH "a lighthouse at dusk" --out pictures
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from flashjanus.compat.diffusers import AutoencoderKL
from flashjanus.compat.janusflow import MultiModalityCausalLM, VLChatProcessor
from PIL import Image


@torch.inference_mode()
def draw(
    vl_gpt: MultiModalityCausalLM,
    vl_chat_processor: VLChatProcessor,
    prompt: str,
    cfg_weight: float = 2.0,
    num_inference_steps: int = 30,
    batchsize: int = 5,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Latents (batchsize, 4, 48, 48) of a formatted prompt; the noise comes from torch's global generator."""
    input_ids = torch.LongTensor(vl_chat_processor.tokenizer.encode(prompt))
    # the first half of the rows is conditional, the second is not
    tokens = torch.stack([input_ids] * 2 * batchsize).to(vl_gpt.device)
    tokens[batchsize:, 1:] = vl_chat_processor.pad_id
    inputs_embeds = vl_gpt.language_model.get_input_embeddings()(tokens)
    inputs_embeds = inputs_embeds[:, :-1, :]  # the time embedding takes the last token's place
    length = inputs_embeds.shape[1]

    z = torch.randn((batchsize, 4, 48, 48), dtype=dtype).to(vl_gpt.device)
    dt = torch.zeros_like(z) + 1.0 / num_inference_steps
    attention_mask = torch.ones((2 * batchsize, length + 577)).to(vl_gpt.device)
    attention_mask[batchsize:, 1:length] = 0
    attention_mask = attention_mask.int()

    past_key_values = None
    for step in range(num_inference_steps):
        z_input = torch.cat([z, z], dim=0)
        t = torch.tensor([step / num_inference_steps * 1000.0] * z_input.shape[0]).to(dt)
        z_emb, t_emb, hs = vl_gpt.vision_gen_enc_model(z_input, t)
        z_emb = z_emb.view(z_emb.shape[0], z_emb.shape[1], -1).permute(0, 2, 1)
        z_emb = vl_gpt.vision_gen_enc_aligner(z_emb)
        llm_emb = torch.cat([inputs_embeds, t_emb.unsqueeze(1), z_emb], dim=1)
        outputs = vl_gpt.language_model.model(
            inputs_embeds=llm_emb, use_cache=True, attention_mask=attention_mask, past_key_values=past_key_values
        )
        past_key_values = ()  # as the official loop has it from its second step on
        hidden_states = vl_gpt.vision_gen_dec_aligner_norm(outputs.last_hidden_state[:, -576:, :])
        hidden_states = vl_gpt.vision_gen_dec_aligner(hidden_states)
        hidden_states = hidden_states.reshape(z_emb.shape[0], 24, 24, 768).permute(0, 3, 1, 2)
        v = vl_gpt.vision_gen_dec_model(hidden_states, hs, t_emb)
        v_cond, v_uncond = torch.chunk(v, 2)
        v = cfg_weight * v_cond - (cfg_weight - 1.0) * v_uncond
        z = z + dt * v
    return z


def generate(
    model_path: str,
    vae_path: str,
    text: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    cfg_weight: float = 2.0,
    num_inference_steps: int = 30,
    batchsize: int = 5,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents, and images (batchsize, 3, H, W) in [0, 1]."""
    vl_chat_processor = VLChatProcessor.from_pretrained(model_path)
    vl_gpt = MultiModalityCausalLM.from_pretrained(model_path, trust_remote_code=True)
    vl_gpt = vl_gpt.to(dtype).to(device).eval()
    vae = AutoencoderKL.from_pretrained(vae_path)
    vae = vae.to(dtype).to(device).eval()

    conversation = [{"role": "User", "content": text}, {"role": "Assistant", "content": ""}]
    sft_format = vl_chat_processor.apply_sft_template_for_multi_turn_prompts(
        conversations=conversation, sft_format=vl_chat_processor.sft_format, system_prompt=""
    )
    prompt = sft_format + vl_chat_processor.image_gen_tag
    torch.manual_seed(seed)  # after loading, which may draw numbers of its own
    z = draw(vl_gpt, vl_chat_processor, prompt, cfg_weight, num_inference_steps, batchsize, dtype)
    with torch.inference_mode():
        decoded_image = vae.decode(z / vae.config.scaling_factor).sample
        return z, decoded_image.clip_(-1.0, 1.0) * 0.5 + 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--model", default="deepseek-ai/JanusFlow-1.3B")
    parser.add_argument("--vae", default="stabilityai/sdxl-vae")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="generated_samples")
    args = parser.parse_args()
    _, images = generate(
        args.model,
        args.vae,
        args.prompt,
        args.device,
        cfg_weight=args.guidance,
        num_inference_steps=args.steps,
        batchsize=args.images,
        seed=args.seed,
    )
    os.makedirs(args.out, exist_ok=True)
    for index, image in enumerate(images.float().cpu().permute(0, 2, 3, 1).numpy()):
        Image.fromarray((image * 255).astype(np.uint8)).save(os.path.join(args.out, f"img_{index}.png"))


if __name__ == "__main__":
    main()
