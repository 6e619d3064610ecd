"""Typed errors: every message says what was expected, what came, and what to do."""


class FlashJanusError(Exception):
    """Base of every error raised on purpose by this package."""


class SchemaError(FlashJanusError, ValueError):
    """An op was given arguments that its schema does not accept."""


class GraphError(FlashJanusError, ValueError):
    """A graph is malformed: a value used before it exists, written twice, or of unknown size."""


class PlanError(FlashJanusError, ValueError):
    """No implementation can serve a node, or an explicit choice of one cannot be met."""


class DeviceError(FlashJanusError, RuntimeError):
    """The device asked for is absent or cannot run this build."""


class OutOfMemoryError(DeviceError):
    """A device has too little free memory. The message says what needed how much, and how to need less."""


class CopyError(FlashJanusError, TypeError):
    """An object that belongs to its process was copied or sent to another process."""


class NativeError(FlashJanusError, RuntimeError):
    """A native kernel refused its arguments, or the native module is not built."""
