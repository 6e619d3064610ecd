from .adapter import FlashJanusBackbone

__all__ = ["FlashJanusBackbone"]
