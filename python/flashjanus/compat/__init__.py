"""The interfaces of the official code, diffusers, and transformers, running on this engine.

Importing this package registers JanusFlow with transformers' Auto classes as soon as they are imported (see
registration.py).
"""

from typing import TYPE_CHECKING, Any

from flashjanus.compat.registration import watch

if TYPE_CHECKING:
    from flashjanus.compat.pipeline import JanusFlowPipeline

__all__ = ["JanusFlowPipeline"]


def __getattr__(name: str) -> Any:
    """Import a class when it is first asked for, and torch with it."""
    if name == "JanusFlowPipeline":
        from flashjanus.compat.pipeline import JanusFlowPipeline

        return JanusFlowPipeline
    raise AttributeError(f"module 'flashjanus.compat' has no attribute '{name}'")


watch()
