"""What an application on Ray Serve is made of: the model, its replicas, and what the server grants."""

import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator
from typing_extensions import Self

from flashjanus.scheduling.policy import Limits
from flashjanus.serving.http.settings import Settings, read_keys

KEYS = "FLASHJANUS_API_KEYS"
CHOICES = (
    "vae",
    "device",
    "dtype",
    "vae_dtype",
    "quantization",
    "numerics",
    "implementations",
    "cuda_graphs",
    "buckets",
)
LEAVE = 10.0
"""Seconds that a replica has beyond `drain` to close its connections and its engine."""


class Replicas(BaseModel):
    """Whoever starts the application with `serve run` gives each of these as NAME=VALUE; an unknown name is refused.

    min_replicas, max_replicas: between which Serve scales. target_ongoing_requests: per replica, running or waiting for
    one; with more, Serve adds replicas, with fewer it takes some away, after the two delays (seconds). A replica that
    shares its time among n requests is busy for about n / (n + 1) of it, so that 2 leave a third for what comes by
    chance; and half as many requests ask for far more than half of the replicas, so that it is a share of the way,
    downscaling_factor, that the number falls at once. benchmarks/simulate_week.py shows what other values do.
    max_ongoing_requests: that a replica has at once. max_queued_requests: that wait at each proxy for a replica that
    has room; more are refused with 429. num_cpus, num_gpus: of each replica.
    live_images, live_answers: rows of a replica's model. api_keys: a file of keys, besides those in the environment.
    """

    # the model's own names begin with model_
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = "shapes"
    vae: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    vae_dtype: str = "auto"
    quantization: str | None = None
    numerics: Literal["exact", "official"] = "exact"
    implementations: dict[str, list[str]] | None = None
    cuda_graphs: bool = True
    buckets: dict[str, list[int]] | None = None
    threads: int | None = Field(None, ge=1)

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(2, gt=0)
    downscaling_factor: float = Field(0.3, gt=0, le=1)
    upscale_delay_s: float = Field(10, ge=0)
    downscale_delay_s: float = Field(600, ge=0)
    max_ongoing_requests: int = Field(64, ge=1)
    max_queued_requests: int = Field(256, ge=1)
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)

    live_images: int = Field(32, ge=1)
    live_answers: int = Field(64, ge=1)
    api_keys: Path | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"max_replicas: expected at least min_replicas, {self.min_replicas}, got {self.max_replicas}"
            )
        return self

    def limits(self) -> Limits:
        """Serve holds back what is beyond max_ongoing_requests, so the engine's own queue needs no bound."""
        return Limits(images=self.live_images, answers=self.live_answers)

    def choices(self) -> dict[str, Any]:
        """Options of `JanusFlow.from_pretrained`."""
        return {name: getattr(self, name) for name in CHOICES}

    def settings(self) -> Settings:
        """What the server grants. Raises InputError for a file of keys that cannot be read."""
        given = {name: getattr(self, name) for name in GRANTED}
        return Settings(**given, keys=read_keys(self.api_keys, os.environ.get(KEYS)))


def _listed(value: Any) -> Any:
    """Of a command line: values between commas."""
    return tuple(value.split(",")) if isinstance(value, str) else value


_HINTS = get_type_hints(Settings)
GRANTED = {one.name: (_HINTS[one.name], one.default) for one in fields(Settings) if one.name != "keys"}
"""Types and defaults of what `Settings` holds; keys come from a file or the environment, which nobody lists."""
assert all(default is not MISSING for _, default in GRANTED.values())

Arguments = create_model(
    "Arguments",
    __base__=Replicas,
    __validators__={
        "listed": field_validator(
            *(name for name, (_, default) in GRANTED.items() if isinstance(default, tuple)), mode="before"
        )(_listed)
    },
    **GRANTED,  # type: ignore[call-overload]
)
"""`Replicas`, and every field of `Settings`."""
