"""The official package's names: change `janus.janusflow.models` to `flashjanus.compat.janusflow`, and no more."""

from flashjanus.compat.model import MultiModalityCausalLM

__all__ = ["MultiModalityCausalLM"]
