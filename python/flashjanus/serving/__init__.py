"""A served model with two interfaces: asyncio and OpenAI's HTTP API."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashjanus.serving.async_engine import AsyncEngine
    from flashjanus.serving.process import ProcessBackend

__all__ = ["AsyncEngine", "ProcessBackend"]


def __getattr__(name: str) -> Any:
    """Import a name on first access: a worker must hear from its server before it waits for torch."""
    if name == "AsyncEngine":
        from flashjanus.serving.async_engine import AsyncEngine

        return AsyncEngine
    if name == "ProcessBackend":
        from flashjanus.serving.process import ProcessBackend

        return ProcessBackend
    raise AttributeError(f"module 'flashjanus.serving' has no attribute '{name}'")
