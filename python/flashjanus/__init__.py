"""FlashJanus: a fast inference engine for JanusFlow."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flashjanus.api.janusflow import ImageOutput, JanusFlow
    from flashjanus.compat.accelerate import accelerate
    from flashjanus.execution.text import ImageTokens

__all__ = ["ImageOutput", "ImageTokens", "JanusFlow", "__version__", "accelerate"]


def __getattr__(name: str) -> Any:
    """Import the model classes when they are first asked for: `flashjanus --help` must not wait for torch."""
    if name in ("ImageOutput", "JanusFlow"):
        from flashjanus.api import janusflow

        return getattr(janusflow, name)
    if name == "accelerate":
        from flashjanus.compat.accelerate import accelerate

        return accelerate
    if name == "ImageTokens":
        from flashjanus.execution.text import ImageTokens

        return ImageTokens
    raise AttributeError(f"module 'flashjanus' has no attribute '{name}'")
