"""Answers a question about a picture by the calls of the official code's README.

Written for `janus.janusflow.models` and `janus.utils.io`; only the import line below names FlashJanus instead.

    python examples/official/understand.py --model PATH picture.png "What is this?"
"""

from __future__ import annotations

import argparse

import torch
from flashjanus.compat.janusflow import MultiModalityCausalLM, VLChatProcessor, load_pil_images


def understand(
    model_path: str,
    picture: str,
    question: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    max_new_tokens: int = 512,
) -> tuple[str, str]:
    """The formatted prompt and the greedy answer."""
    vl_chat_processor = VLChatProcessor.from_pretrained(model_path)
    tokenizer = vl_chat_processor.tokenizer
    vl_gpt = MultiModalityCausalLM.from_pretrained(model_path, trust_remote_code=True)
    vl_gpt = vl_gpt.to(dtype).to(device).eval()

    conversation = [
        {"role": "User", "content": f"<image_placeholder>\n{question}", "images": [picture]},
        {"role": "Assistant", "content": ""},
    ]
    pil_images = load_pil_images(conversation)
    prepare_inputs = vl_chat_processor(conversations=conversation, images=pil_images, force_batchify=True)
    prepare_inputs = prepare_inputs.to(vl_gpt.device, dtype=dtype)

    inputs_embeds = vl_gpt.prepare_inputs_embeds(**prepare_inputs)
    outputs = vl_gpt.language_model.generate(
        inputs_embeds=inputs_embeds,
        attention_mask=prepare_inputs.attention_mask,
        pad_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
    )
    answer = tokenizer.decode(outputs[0].cpu().tolist(), skip_special_tokens=True)
    return prepare_inputs["sft_format"][0], answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("question")
    parser.add_argument("--model", default="deepseek-ai/JanusFlow-1.3B")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    args = parser.parse_args()
    prompt, answer = understand(
        args.model, args.picture, args.question, args.device, max_new_tokens=args.max_new_tokens
    )
    print(prompt, answer)


if __name__ == "__main__":
    main()
