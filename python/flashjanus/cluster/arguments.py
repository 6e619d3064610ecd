"""The arguments of an application on Ray Serve: the model, its replicas, and the server's limits."""

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
    "adapters",
)
LEAVE = 10.0
"""Seconds that a replica has beyond `drain` to close its connections and its engine."""


class Replicas(BaseModel):
    """Arguments that `serve run` takes as NAME=VALUE; an unknown name is refused.

    min_replicas, max_replicas: the bounds between which Serve scales. target_ongoing_requests: the number of requests
    per replica, running or waiting for one, at which Serve keeps the number of replicas. With more it adds replicas and
    with fewer it removes some, after the two delays (seconds). A replica that shares its time among n requests is busy
    for about n / (n + 1) of it, so a target of 2 leaves a third free for random peaks. Half as many requests still need
    far more than half of the replicas, so the number falls by only a share of the way at once, downscaling_factor.
    benchmarks/simulate_week.py shows the effect of other values. max_ongoing_requests: the most requests that a replica
    has at once. max_queued_requests: the most requests that wait at each proxy for a replica with room; further ones
    are refused with 429. num_cpus, num_gpus: the CPUs and GPUs of each replica. live_images, live_answers: the rows of
    a replica's model. api_keys: a file of keys, in addition to those in the environment.
    """

    # the model's own names begin with model_, which pydantic reserves
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
    adapters: dict[str, str] | None = None
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
        """The engine's limits. Its queue needs no bound, because Serve holds back requests beyond
        max_ongoing_requests."""
        return Limits(images=self.live_images, answers=self.live_answers)

    def choices(self) -> dict[str, Any]:
        """Options for `JanusFlow.from_pretrained`."""
        return {name: getattr(self, name) for name in CHOICES}

    def settings(self) -> Settings:
        """The server's settings. Raises InputError if the file of API keys cannot be read."""
        given = {name: getattr(self, name) for name in GRANTED}
        return Settings(**given, keys=read_keys(self.api_keys, os.environ.get(KEYS)))


def _listed(value: Any) -> Any:
    """Split a comma-separated value of a command line."""
    return tuple(value.split(",")) if isinstance(value, str) else value


_HINTS = get_type_hints(Settings)
GRANTED = {one.name: (_HINTS[one.name], one.default) for one in fields(Settings) if one.name != "keys"}
"""Types and defaults of the fields of `Settings`, without keys, which come from a file or the environment."""
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
"""`Replicas`, with every field of `Settings`."""
