"""Both faces of a model behind an asyncio interface and OpenAI's HTTP interface."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashjanus.serving.async_engine import AsyncEngine
    from flashjanus.serving.process import ProcessBackend

__all__ = ["AsyncEngine", "ProcessBackend"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: a worker must hear its server before it waits for torch."""
    if name == "AsyncEngine":
        from flashjanus.serving.async_engine import AsyncEngine

        return AsyncEngine
    if name == "ProcessBackend":
        from flashjanus.serving.process import ProcessBackend

        return ProcessBackend
    raise AttributeError(f"module 'flashjanus.serving' has no attribute '{name}'")
