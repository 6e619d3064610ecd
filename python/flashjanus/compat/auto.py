"""JanusFlow's configs as transformers' classes, and their registration with its Auto classes (see registration.py)."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from flashjanus.compat.outputs import Config


def _fill(section: Any, given: dict[str, Any]) -> None:
    """Initialize a section of config.json: `cls` is the name of a class, and `params` are the arguments for it."""
    PretrainedConfig.__init__(section, **given)
    kind = given.get("cls", "")
    section.cls = kind if isinstance(kind, str) else kind.__name__
    section.params = Config(given.get("params") or {})


# Each class defines its own constructor, because transformers 5 replaces an inherited one.
class VisionUnderstandEncoderConfig(PretrainedConfig):  # type: ignore[misc]
    model_type = "vision_und_enc"

    def __init__(self, **kwargs: Any) -> None:
        _fill(self, kwargs)


class VisionGenerationEncoderConfig(PretrainedConfig):  # type: ignore[misc]
    model_type = "vision_gen_enc"

    def __init__(self, **kwargs: Any) -> None:
        _fill(self, kwargs)


class VisionGenerationDecoderConfig(PretrainedConfig):  # type: ignore[misc]
    model_type = "vision_gen_dec"

    def __init__(self, **kwargs: Any) -> None:
        _fill(self, kwargs)


SECTIONS = (VisionUnderstandEncoderConfig, VisionGenerationEncoderConfig, VisionGenerationDecoderConfig)


class MultiModalityConfig(PretrainedConfig):  # type: ignore[misc]
    """A config.json whose sections are configs of their own."""

    model_type = "multi_modality"

    def __init__(self, **kwargs: Any) -> None:
        from transformers import LlamaConfig  # it cannot be imported while the Auto classes are being imported

        super().__init__(**kwargs)
        for section in SECTIONS:
            name = f"{section.model_type}_config"
            setattr(self, name, _as(section, kwargs.get(name)))
        self.language_config = _as(LlamaConfig, kwargs.get("language_config"))


def _as(kind: Any, given: Any) -> Any:
    """Turn a section (a dict, a config, or None) into a config."""
    return given if isinstance(given, PretrainedConfig) else kind(**(given or {}))


def configs() -> None:
    """Register the configs with AutoConfig."""
    from transformers.models.auto.configuration_auto import AutoConfig

    for config in (*SECTIONS, MultiModalityConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def model() -> None:
    """Register the model class with AutoModelForCausalLM."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    from flashjanus.compat.model import MultiModalityCausalLM

    MultiModalityCausalLM.config_class = MultiModalityConfig
    AutoModelForCausalLM.register(MultiModalityConfig, MultiModalityCausalLM, exist_ok=True)


def processor() -> None:
    """Register the processor class with AutoProcessor."""
    from transformers.models.auto.processing_auto import AutoProcessor

    from flashjanus.compat.processing.processor import VLChatProcessor

    AutoProcessor.register(MultiModalityConfig, VLChatProcessor, exist_ok=True)
