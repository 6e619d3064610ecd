"""Interfaces of other programs, under their names, on this engine.

Importing this makes transformers' Auto classes know JanusFlow, once somebody imports them (see registration.py).
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
