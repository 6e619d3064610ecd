"""The two functions of the official Gradio demo, with its calls.

Written for `janus.janusflow.models` and `diffusers.models`; only the two import lines below name FlashJanus instead.
`flashjanus serve --ui` is a page of our own.
"""

from __future__ import annotations

import numpy as np
import torch
from flashjanus.compat.diffusers import AutoencoderKL
from flashjanus.compat.janusflow import MultiModalityCausalLM, VLChatProcessor
from PIL import Image

IMAGES = 5
"""Drawn at a time."""


class Demo:
    """A loaded model and its two functions."""

    def __init__(
        self, model_path: str, vae_path: str, device: str = "cpu", dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self.device, self.dtype = device, dtype
        self.processor = VLChatProcessor.from_pretrained(model_path)
        self.tokenizer = self.processor.tokenizer
        self.vl_gpt = MultiModalityCausalLM.from_pretrained(model_path).to(dtype).to(device).eval()
        self.vae = AutoencoderKL.from_pretrained(vae_path).to(dtype).to(device).eval()

    @torch.inference_mode()
    def multimodal_understanding(
        self,
        image: np.ndarray,
        question: str,
        seed: int,
        top_p: float,
        temperature: float,
        max_new_tokens: int = 512,
    ) -> str:
        """The answer to a question about an array (H, W, 3) of uint8; temperature 0 is greedy."""
        torch.manual_seed(seed)
        np.random.seed(seed)
        conversation = [
            {"role": "User", "content": f"<image_placeholder>\n{question}", "images": [image]},
            {"role": "Assistant", "content": ""},
        ]
        prepare_inputs = self.processor(
            conversations=conversation, images=[Image.fromarray(image)], force_batchify=True
        ).to(self.device, dtype=self.dtype)
        inputs_embeds = self.vl_gpt.prepare_inputs_embeds(**prepare_inputs)
        outputs = self.vl_gpt.language_model.generate(
            inputs_embeds=inputs_embeds,
            attention_mask=prepare_inputs.attention_mask,
            pad_token_id=self.tokenizer.eos_token_id,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            max_new_tokens=max_new_tokens,
            do_sample=temperature != 0,
            use_cache=True,
            temperature=temperature,
            top_p=top_p,
        )
        return self.tokenizer.decode(outputs[0].cpu().tolist(), skip_special_tokens=True)

    @torch.inference_mode()
    def generate_image(
        self, prompt: str, seed: int | None = None, guidance: float = 5, num_inference_steps: int = 30
    ) -> list[Image.Image]:
        """Pictures of a prompt, enlarged to 1024 x 1024."""
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed)
        messages = [{"role": "User", "content": prompt}, {"role": "Assistant", "content": ""}]
        text = self.processor.apply_sft_template_for_multi_turn_prompts(
            conversations=messages, sft_format=self.processor.sft_format, system_prompt=""
        )
        # The demo ends the prompt with another tag than the README; the time embedding replaces either.
        text = text + self.processor.image_start_tag
        z = self.sample(torch.LongTensor(self.tokenizer.encode(text)), guidance, num_inference_steps)
        decoded_image = self.vae.decode(z / self.vae.config.scaling_factor).sample
        images = decoded_image.float().clip_(-1.0, 1.0).permute(0, 2, 3, 1).cpu().numpy()
        images = ((images + 1) / 2.0 * 255).astype(np.uint8)
        return [Image.fromarray(image).resize((1024, 1024), Image.Resampling.LANCZOS) for image in images]

    def sample(self, input_ids: torch.Tensor, cfg_weight: float, num_inference_steps: int) -> torch.Tensor:
        """Latents (IMAGES, 4, 48, 48)."""
        vl_gpt = self.vl_gpt
        tokens = torch.stack([input_ids] * 2 * IMAGES).to(self.device)
        tokens[IMAGES:, 1:] = self.processor.pad_id
        inputs_embeds = vl_gpt.language_model.get_input_embeddings()(tokens)[:, :-1, :]
        z = torch.randn((IMAGES, 4, 48, 48), dtype=self.dtype).to(self.device)
        dt = torch.zeros_like(z) + 1.0 / num_inference_steps
        attention_mask = torch.ones((2 * IMAGES, inputs_embeds.shape[1] + 577)).to(vl_gpt.device)
        attention_mask[IMAGES:, 1 : inputs_embeds.shape[1]] = 0
        attention_mask = attention_mask.int()
        for step in range(num_inference_steps):
            z_input = torch.cat([z, z], dim=0)
            t = torch.tensor([step / num_inference_steps * 1000.0] * z_input.shape[0]).to(dt)
            z_enc = vl_gpt.vision_gen_enc_model(z_input, t)
            z_emb, t_emb, hs = z_enc[0], z_enc[1], z_enc[2]
            z_emb = z_emb.view(z_emb.shape[0], z_emb.shape[1], -1).permute(0, 2, 1)
            z_emb = vl_gpt.vision_gen_enc_aligner(z_emb)
            llm_emb = torch.cat([inputs_embeds, t_emb.unsqueeze(1), z_emb], dim=1)
            outputs = vl_gpt.language_model.model(
                inputs_embeds=llm_emb,
                use_cache=True,
                attention_mask=attention_mask,
                past_key_values=None if step == 0 else (),
            )
            hidden_states = vl_gpt.vision_gen_dec_aligner(
                vl_gpt.vision_gen_dec_aligner_norm(outputs.last_hidden_state[:, -576:, :])
            )
            hidden_states = hidden_states.reshape(z_emb.shape[0], 24, 24, 768).permute(0, 3, 1, 2)
            v_cond, v_uncond = torch.chunk(vl_gpt.vision_gen_dec_model(hidden_states, hs, t_emb), 2)
            z = z + dt * (cfg_weight * v_cond - (cfg_weight - 1.0) * v_uncond)
        return z
