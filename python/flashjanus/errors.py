"""The errors a user can meet. All derive from `FlashJanusError`; the CLI prints them without a traceback."""

from flashjanus.engine.errors import (
    CopyError,
    DeviceError,
    FlashJanusError,
    GraphError,
    NativeError,
    OutOfMemoryError,
    PlanError,
    SchemaError,
)


class CheckpointError(FlashJanusError, ValueError):
    """A checkpoint cannot be read: files missing or damaged, tensors missing, left over or misshapen."""


class ConfigError(CheckpointError):
    """config.json (or a processor file) is not valid or describes an impossible model."""


class InputError(FlashJanusError, ValueError):
    """A request is outside what the model accepts: prompt, image, option or tensor."""


class AbsentError(FlashJanusError, AttributeError):
    """Another program's interface has something that is not here under its name."""


class BusyError(FlashJanusError, RuntimeError):
    """A queue has no room for another request: try again later."""


class DeadlineError(FlashJanusError, TimeoutError):
    """A request was not served before its deadline."""


class UnavailableError(FlashJanusError, RuntimeError):
    """An engine does not serve: it is starting, draining, closed, or ended in the midst of the request."""


class NonFiniteError(FlashJanusError, ArithmeticError):
    """A row's values left the range of its dtype: NaN or infinity."""


class PeerError(FlashJanusError, RuntimeError):
    """Another implementation, which a benchmark was to time beside ours, is absent or failed."""


class OutputError(FlashJanusError, OSError):
    """A result cannot be written where it was asked for."""


__all__ = [
    "AbsentError",
    "BusyError",
    "CheckpointError",
    "ConfigError",
    "CopyError",
    "DeadlineError",
    "DeviceError",
    "FlashJanusError",
    "GraphError",
    "InputError",
    "NativeError",
    "NonFiniteError",
    "OutOfMemoryError",
    "OutputError",
    "PeerError",
    "PlanError",
    "SchemaError",
    "UnavailableError",
]
