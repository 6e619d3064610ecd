"""How a linear's weight is laid out in memory. Importing this package registers every format in its folder."""

from importlib import import_module
from pkgutil import iter_modules

from .base import FORMATS, Format, Loss
from .weight import Weight

__all__ = ["FORMATS", "Format", "Loss", "Weight"]

for _name in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_name}")
