"""The official package's names: change `janus.janusflow.models` to `flashjanus.compat.janusflow`, and no more."""

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
