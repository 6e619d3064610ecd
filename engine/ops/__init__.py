"""The fused ops, one per file. Importing this package registers every op in its folder."""

from importlib import import_module
from pkgutil import iter_modules

from .base import Avoided, Call, Given, Implementation, Op, Tunable, all_ops, get_op
from .schema import Schema

__all__ = ["Avoided", "Call", "Given", "Implementation", "Op", "Schema", "Tunable", "all_ops", "get_op"]

for _name in sorted(module.name for module in iter_modules(__path__)):
    if _name != "__main__":
        import_module(f"{__name__}.{_name}")
