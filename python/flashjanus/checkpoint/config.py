"""config.json of a JanusFlow checkpoint as frozen dataclasses, with the official defaults.

Sources of the defaults: transformers' LlamaConfig for the language section; the `__init__` of ShallowUViTEncoder,
ShallowUViTDecoder and CLIPVisionTower in deepseek-ai/Janus for the three vision sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashjanus.checkpoint.fields import Fields, raise_problems
from flashjanus.checkpoint.quantizations import QUANTIZATIONS
from flashjanus.disk.reading import read_json, show
from flashjanus.errors import ConfigError

# Far beyond any model of this family, and small enough that no product of them is allocated by mistake.
MAX_WIDTH = 65_536
MAX_FFN = 524_288
MAX_LAYERS = 1_024
MAX_HEADS = 4_096
MAX_VOCAB = 4_194_304
MAX_POSITIONS = 16_777_216
MAX_PIXELS = 8_192
MAX_LATENT = 1_024

SIGLIP_SIZES: dict[str, dict[str, int | float]] = {
    "siglip_so400m_patch14_384": {"width": 1152, "layers": 27, "heads": 16, "patch_size": 14, "mlp_ratio": 3.7362},
    "siglip_so400m_patch14_224": {"width": 1152, "layers": 27, "heads": 16, "patch_size": 14, "mlp_ratio": 3.7362},
    "siglip_large_patch16_384": {"width": 1024, "layers": 24, "heads": 16, "patch_size": 16, "mlp_ratio": 4.0},
    "siglip_large_patch16_256": {"width": 1024, "layers": 24, "heads": 16, "patch_size": 16, "mlp_ratio": 4.0},
}


@dataclass(frozen=True)
class LanguageConfig:
    """Llama decoder: D = hidden_size, H query heads and G key/value heads of head_dim each."""

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    vocab_size: int = 32000
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False

    @classmethod
    def read(cls, f: Fields) -> LanguageConfig:
        f.refuse_unless("model_type", ["llama"], "other language models compute something else")
        f.refuse_unless("hidden_act", ["silu"], "the gated FFN is computed with SiLU")
        f.refuse_unless("attention_bias", [False], "attention projections are computed without biases")
        f.refuse_unless("mlp_bias", [False], "FFN projections are computed without biases")
        hidden = f.size("hidden_size", 4096, MAX_WIDTH)
        heads = f.size("num_attention_heads", 32, MAX_HEADS)
        if not f.given("head_dim") and hidden % heads:
            f.bad("num_attention_heads", f"a divisor of hidden_size {hidden} (or an explicit head_dim)", got=heads)
        return cls(
            hidden_size=hidden,
            intermediate_size=f.size("intermediate_size", 11008, MAX_FFN),
            num_hidden_layers=f.size("num_hidden_layers", 32, MAX_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=f.size("num_key_value_heads", heads, MAX_HEADS, nullable=True),
            head_dim=f.size("head_dim", max(hidden // heads, 1), MAX_WIDTH, nullable=True),
            vocab_size=f.size("vocab_size", 32000, MAX_VOCAB),
            max_position_embeddings=f.size("max_position_embeddings", 2048, MAX_POSITIONS),
            rms_norm_eps=f.number("rms_norm_eps", 1e-6),
            rope_theta=_rope_theta(f),
            tie_word_embeddings=f.flag("tie_word_embeddings", False),
        )

    def problems(self) -> list[str]:
        found = []
        if self.num_attention_heads % self.num_key_value_heads:
            found.append(
                "language_config.num_key_value_heads: expected a divisor of num_attention_heads "
                f"{self.num_attention_heads}, got {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            found.append(f"language_config.head_dim: expected an even size (RoPE rotates pairs), got {self.head_dim}")
        return found


def _rope_theta(f: Fields) -> float:
    """RoPE base, from `rope_theta` or from the `rope_parameters` that newer transformers write. Refuses scaled RoPE."""
    theta = f.number("rope_theta", 10000.0) if f.given("rope_theta") else 10000.0
    for key in ("rope_scaling", "rope_parameters"):
        if not f.given(key):
            continue
        rope = f.section(key)
        for kind in ("rope_type", "type"):
            rope.refuse_unless(kind, ["default"], "scaled rotary embeddings are not computed")
        rope.refuse_unless("partial_rotary_factor", [1, 1.0], "the whole head is rotated")
        theta = rope.number("rope_theta", theta)
    return theta


@dataclass(frozen=True)
class UnderstandingConfig:
    """SigLIP encoder: `layers` counts the blocks that run, after select_layer."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @classmethod
    def read(cls, f: Fields) -> UnderstandingConfig:
        """Sizes of `model_name`; width, layers, heads, patch_size and mlp_ratio in the params take precedence.

        select_layer as in the official create_siglip_vit: n > 0 runs n blocks, n <= 0 runs layers + n + 1 (default -2).
        """
        name = f.data.get("model_name", "siglip_large_patch16_384")
        known = SIGLIP_SIZES.get(name) if isinstance(name, str) else None
        if known is None:
            known = SIGLIP_SIZES["siglip_large_patch16_384"]
            absent = [key for key in known if not f.given(key)]
            if absent:
                expected = f"one of {', '.join(SIGLIP_SIZES)}, or explicit params for the missing {', '.join(absent)}"
                f.bad("model_name", expected, got=name)
        if f.given("pixel_mean") and f.given("pixel_std"):
            f.bad("pixel_mean", "null (the image processor normalizes; a second normalization is not computed)")
        f.refuse_unless("ignore_head", [True], "the attention pool is not computed")
        width = f.size("width", int(known["width"]), MAX_WIDTH)
        blocks = f.size("layers", int(known["layers"]), MAX_LAYERS)
        select = f.size("select_layer", -2, MAX_LAYERS, least=-blocks)
        if select <= 0:
            select = blocks + select + 1
        mlp_ratio = f.number("mlp_ratio", known["mlp_ratio"])
        if width * mlp_ratio > MAX_FFN:
            f.bad("mlp_ratio", f"an MLP of at most {MAX_FFN} channels", got=mlp_ratio)
        return cls(
            image_size=_square(f, "image_size", 336),
            patch_size=f.size("patch_size", int(known["patch_size"]), MAX_PIXELS),
            width=width,
            layers=min(blocks, select),
            heads=f.size("heads", int(known["heads"]), MAX_HEADS),
            mlp_width=int(min(width * mlp_ratio, MAX_FFN)),
        )

    def problems(self) -> list[str]:
        where = "vision_und_enc_config.params"
        found = []
        if self.width % self.heads:
            found.append(f"{where}.heads: expected a divisor of the width {self.width}, got {self.heads}")
        if self.image_size % self.patch_size:
            found.append(
                f"{where}.image_size: expected a multiple of the patch size {self.patch_size}, got {self.image_size}"
            )
        if self.mlp_width < 1:
            found.append(f"{where}.mlp_ratio: expected an MLP of at least one channel, got {self.mlp_width}")
        return found


def _square(f: Fields, key: str, default: int) -> int:
    """An image side, given as n or as [n, n]."""
    value = f.data.get(key, default)
    if isinstance(value, (list, tuple)):
        sides = f.sizes(key, (default, default), MAX_PIXELS)
        if len(sides) != 2 or sides[0] != sides[1]:
            f.bad(key, "one side of a square image")
            return default
        return sides[0]
    return f.size(key, default, MAX_PIXELS)


def _single_width(f: Fields) -> int:
    """block_out_channels of the shallow U-ViT, which must be one width: the official code cannot join two."""
    widths = f.sizes("block_out_channels", (768,), MAX_WIDTH)
    if len(widths) != 1:
        f.bad("block_out_channels", "one width (the shallow U-ViT has a single resolution)")
    return widths[0]


@dataclass(frozen=True)
class GenEncoderConfig:
    """Latent (input_channels, L, L) -> (channels, grid, grid), and the time embedding of hidden_size."""

    input_channels: int = 3
    channels: int = 768
    kernel_size: int = 7
    stride: int = 4
    padding: int = 3
    layers: int = 2
    hidden_size: int = 2048
    norm_eps: float = 1e-6
    use_bias: bool = True
    use_mid_block: bool = True

    @property
    def blocks(self) -> int:
        """Number of ConvNeXt blocks."""
        return self.layers if self.use_mid_block else 0

    @classmethod
    def read(cls, f: Fields) -> GenEncoderConfig:
        kernel = f.size("kernel_size", 7, MAX_LATENT)
        stride = f.size("stride", 4, MAX_LATENT)
        return cls(
            input_channels=f.size("input_channels", 3, MAX_WIDTH),
            channels=_single_width(f),
            kernel_size=kernel,
            stride=stride,
            padding=f.size("padding", max(kernel - stride, 0), MAX_LATENT, least=0, nullable=True),
            layers=f.size("layers_in_middle", 2, MAX_LAYERS, least=0),
            hidden_size=f.size("hidden_size", 2048, MAX_WIDTH),
            norm_eps=f.number("norm_eps", 1e-6),
            use_bias=f.flag("use_bias", True),
            use_mid_block=f.flag("use_mid_block", True),
        )


@dataclass(frozen=True)
class GenDecoderConfig:
    """(in_channels + skip channels, grid, grid) -> velocity (out_channels, L, L) by `upsamples` pixel shuffles."""

    in_channels: int = 768
    out_channels: int = 3
    channels: int = 768
    upsamples: int = 2
    layers: int = 2
    hidden_size: int = 2048
    norm_eps: float = 1e-6
    use_bias: bool = True
    use_mid_block: bool = True

    @property
    def blocks(self) -> int:
        """Number of ConvNeXt blocks."""
        return self.layers if self.use_mid_block else 0

    @property
    def width(self) -> int:
        """Channels of the decoder's blocks: the aligned hidden states concatenated with the encoder's output."""
        return self.in_channels + self.channels

    @classmethod
    def read(cls, f: Fields) -> GenDecoderConfig:
        return cls(
            in_channels=f.size("in_channels", 768, MAX_WIDTH),
            out_channels=f.size("out_channels", 3, MAX_WIDTH),
            channels=_single_width(f),
            upsamples=f.size("upsamples", 2, 10),
            layers=f.size("layers_in_middle", 2, MAX_LAYERS, least=0),
            hidden_size=f.size("hidden_size", 2048, MAX_WIDTH),
            norm_eps=f.number("norm_eps", 1e-6),
            use_bias=f.flag("use_bias", True),
            use_mid_block=f.flag("use_mid_block", True),
        )


@dataclass(frozen=True)
class JanusFlowConfig:
    """The whole model. Construction raises ConfigError if sections do not fit together.

    image_attention ("causal" or "bidirectional" inside the block of image tokens) and latent_size (side of the latent)
    are optional top-level keys of this package; the released model has neither. quantization: one of
    QUANTIZATIONS where the language model's linears are stored so, as `quantization_config` says; None where no weight
    has scales.
    """

    language: LanguageConfig
    understanding: UnderstandingConfig
    gen_encoder: GenEncoderConfig
    gen_decoder: GenDecoderConfig
    image_attention: str
    latent_size: int
    quantization: str | None = None

    def __post_init__(self) -> None:
        found = [*self.language.problems(), *self.understanding.problems(), *_generation_problems(self)]
        raise_problems("config.json describes an impossible model", found)

    @property
    def grid(self) -> int:
        """Side of the square of image tokens."""
        e = self.gen_encoder
        return (self.latent_size + 2 * e.padding - e.kernel_size) // e.stride + 1

    @property
    def num_image_tokens(self) -> int:
        return self.grid**2

    @property
    def num_understanding_tokens(self) -> int:
        return (self.understanding.image_size // self.understanding.patch_size) ** 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> JanusFlowConfig:
        """Parse an official config.json. ConfigError lists every bad value: key, what is expected, what came."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"config.json: expected an object, got {show(data)}")
        if data.get("model_type") != "multi_modality":
            raise ConfigError(f'model_type: expected "multi_modality", got {show(data.get("model_type"))}')
        if "gen_vision_config" in data and "vision_gen_enc_config" not in data:
            raise ConfigError(
                "vision_gen_enc_config: expected a JanusFlow model, got the sections of Janus or Janus-Pro, "
                "which draw autoregressively and are not supported"
            )
        problems: list[str] = []
        top = Fields(data, "", problems)
        language = LanguageConfig.read(top.section("language_config", default={}))
        understanding = UnderstandingConfig.read(_params(top, "vision_und_enc_config", "CLIPVisionTower"))
        gen_encoder = GenEncoderConfig.read(_params(top, "vision_gen_enc_config", "ShallowUViTEncoder"))
        gen_decoder = GenDecoderConfig.read(_params(top, "vision_gen_dec_config", "ShallowUViTDecoder"))
        latent_size = top.size("latent_size", max(understanding.image_size // 8, 1), MAX_LATENT, nullable=True)
        image_attention = top.choice("image_attention", "causal", ["causal", "bidirectional"])
        quantization = _quantization(top)
        raise_problems("config.json", problems)
        return cls(language, understanding, gen_encoder, gen_decoder, image_attention, latent_size, quantization)

    @classmethod
    def from_file(cls, path: str | Path) -> JanusFlowConfig:
        return cls.from_dict(read_json(Path(path), ConfigError))


def _params(top: Fields, key: str, cls_name: str) -> Fields:
    section = top.section(key)
    if section.given("cls") and cls_name not in str(section.data["cls"]):
        section.bad("cls", f'a name that contains "{cls_name}"')
    return section.section("params", default={})


def _quantization(top: Fields) -> str | None:
    if not top.given("quantization_config"):
        return None
    section = top.section("quantization_config")
    method = section.choice("method", "", list(QUANTIZATIONS))
    if method:
        section.refuse_unless("bits", [QUANTIZATIONS[method].bits], f"{method} has no other width")
    return method or None


def _generation_problems(config: JanusFlowConfig) -> list[str]:
    """Mismatches between the language model, the generation encoder and the generation decoder."""
    encoder, decoder, hidden = config.gen_encoder, config.gen_decoder, config.language.hidden_size
    enc, dec = "vision_gen_enc_config.params", "vision_gen_dec_config.params"
    checks = [
        (f"{enc}.hidden_size", f"the language model's {hidden}", encoder.hidden_size, encoder.hidden_size == hidden),
        (f"{dec}.hidden_size", f"the language model's {hidden}", decoder.hidden_size, decoder.hidden_size == hidden),
        (
            f"{enc}.block_out_channels",
            "an even width (half cosines, half sines of t)",
            encoder.channels,
            encoder.channels % 2 == 0,
        ),
        (
            f"{dec}.block_out_channels",
            f"the encoder's {encoder.channels} (its output is the decoder's skip input)",
            decoder.channels,
            decoder.channels == encoder.channels,
        ),
        (
            f"{dec}.out_channels",
            f"the encoder's input_channels {encoder.input_channels}",
            decoder.out_channels,
            decoder.out_channels == encoder.input_channels,
        ),
        (
            f"{enc}.stride",
            f"{2**decoder.upsamples} = 2 ** upsamples, so that the velocity has the latent's size",
            encoder.stride,
            encoder.stride == 2**decoder.upsamples,
        ),
        (
            f"{dec}.use_bias",
            f"the encoder's {str(encoder.use_bias).lower()} (the modulations of both are computed as one linear map)",
            str(decoder.use_bias).lower(),
            decoder.use_bias == encoder.use_bias,
        ),
    ]
    found = [f"{key}: expected {expected}, got {got}" for key, expected, got, good in checks if not good]
    side = config.grid * 2**decoder.upsamples
    if not found and (config.grid < 1 or side != config.latent_size):
        found.append(
            f"latent_size: expected a size that kernel {encoder.kernel_size}, stride {encoder.stride} and padding "
            f"{encoder.padding} reproduce, got {config.latent_size} -> {config.grid} tokens a side -> {side}"
        )
    room = config.language.max_position_embeddings
    if not found and config.num_image_tokens + 2 > room:
        found.append(
            f"language_config.max_position_embeddings: expected at least {config.num_image_tokens + 2} "
            f"(first token, time token and {config.num_image_tokens} image tokens), got {room}"
        )
    return found
