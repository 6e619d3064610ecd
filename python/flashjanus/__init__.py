"""FlashJanus: a fast inference engine for JanusFlow."""

__version__ = "0.1.0"
