"""A browser page that draws images and answers questions, beside an API; extra `[ui]`. It contacts no other host."""

from flashjanus.errors import InputError

try:
    from flashjanus.serving.ui.page import blocks, mount
except ModuleNotFoundError as error:
    if (error.name or "").startswith("flashjanus"):
        raise
    raise InputError(
        f'{error.name} is not installed, which the playground needs: pip install "flashjanus[ui]"'
    ) from error

__all__ = ["blocks", "mount"]
