"""Checkpoints: the official config, the files with the weights, and the layout that the model's kernels need."""

from flashjanus.checkpoint.config import (
    GenDecoderConfig,
    GenEncoderConfig,
    JanusFlowConfig,
    LanguageConfig,
    UnderstandingConfig,
)
from flashjanus.checkpoint.files import Checkpoint, VaeFiles
from flashjanus.checkpoint.inspect import describe, format_description
from flashjanus.checkpoint.layout import Layout, Source, Target, weight_layout
from flashjanus.checkpoint.load import check_layout, load_weights
from flashjanus.checkpoint.sources import FileSource, StateDictSource, TensorInfo, TensorSource
from flashjanus.checkpoint.vae_config import VaeConfig
from flashjanus.checkpoint.vae_layout import vae_layout

__all__ = [
    "Checkpoint",
    "FileSource",
    "GenDecoderConfig",
    "GenEncoderConfig",
    "JanusFlowConfig",
    "LanguageConfig",
    "Layout",
    "Source",
    "StateDictSource",
    "Target",
    "TensorInfo",
    "TensorSource",
    "UnderstandingConfig",
    "VaeConfig",
    "VaeFiles",
    "check_layout",
    "describe",
    "format_description",
    "load_weights",
    "vae_layout",
    "weight_layout",
]
