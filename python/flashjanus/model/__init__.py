"""The parts of JanusFlow as functions that append nodes to a graph, and the programs made of them."""

from .parts import READS, decode_velocity, encode_latents, read_embeds
from .policy import Policy
from .programs import (
    FLOW_FORMS,
    FlowForm,
    Weights,
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
    "FLOW_FORMS",
    "READS",
    "FlowForm",
    "Policy",
    "Weights",
    "decode_latents",
    "decode_step",
    "decode_velocity",
    "encode_images",
    "encode_latents",
    "flow_prepare",
    "flow_step",
    "prefill",
    "read_embeds",
    "rope_table",
    "weight_specs",
]
