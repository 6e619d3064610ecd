"""JanusFlow in ComfyUI, on FlashJanus. What ComfyUI looks for in a folder of custom_nodes is `comfy_entrypoint`."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
