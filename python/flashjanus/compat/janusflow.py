"""The official package's names. In a script, replace `janus.janusflow.models` by `flashjanus.compat.janusflow`."""

from flashjanus.compat.model import MultiModalityCausalLM
from flashjanus.compat.processing.images import VLMImageProcessor, load_pil_images
from flashjanus.compat.processing.outputs import BatchedVLChatProcessorOutput, VLChatProcessorOutput
from flashjanus.compat.processing.processor import VLChatProcessor

__all__ = [
    "BatchedVLChatProcessorOutput",
    "MultiModalityCausalLM",
    "VLChatProcessor",
    "VLChatProcessorOutput",
    "VLMImageProcessor",
    "load_pil_images",
]
