"""Both faces of a model behind an asyncio interface and OpenAI's HTTP interface."""

from flashjanus.serving.async_engine import AsyncEngine

__all__ = ["AsyncEngine"]
