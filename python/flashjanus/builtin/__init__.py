"""The built-in models: trained weights that come with the package, in official layout.

shapes: draws 64 x 64 pixels of colored shapes and answers questions about them; its MODEL_CARD.md says how well.
"""

from __future__ import annotations

from pathlib import Path

from flashjanus.errors import CheckpointError

NAMES = ("shapes",)
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "evaluation.safetensors",
    "vae/config.json",
    "vae/preview.json",
    "vae/diffusion_pytorch_model.safetensors",
)
"""What every built-in model consists of."""


def builtin_folder(name: str = "shapes") -> Path:
    """The installed folder of the built-in model `name`. Raises `CheckpointError` if it is unknown or incomplete."""
    if name not in NAMES:
        raise CheckpointError(f"no built-in model {name!r}; there is: {', '.join(NAMES)}")
    folder = Path(__file__).with_name(name)
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"built-in model {name!r}: expected all of its files in {folder}, missing {', '.join(missing)}; the "
            "package was installed without its data: install it again from a wheel or a complete checkout"
        )
    return folder
