"""The parts of JanusFlow as functions that append nodes to a graph, and the six programs built from them."""

from .policy import Policy
from .programs import (
    decode_latents,
    decode_step,
    encode_images,
    flow_prepare,
    flow_step,
    prefill,
    rope_table,
    weight_specs,
)

__all__ = [
    "Policy",
    "decode_latents",
    "decode_step",
    "encode_images",
    "flow_prepare",
    "flow_step",
    "prefill",
    "rope_table",
    "weight_specs",
]
