"""Objects bound to their process: they hold addresses, locks and threads that mean nothing in another process."""

from __future__ import annotations

from typing import NoReturn

from ..errors import CopyError


class ProcessBound:
    """Can be neither pickled nor deep-copied: both raise CopyError."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise CopyError(
            f"{type(self).__name__}: expected to be used in the process that loaded it, got a copy or a pickle of it, "
            "which would be bound to memory and threads of this one. Load the model in the child, or fork after "
            "loading; threads of one process may share it"
        )

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce_ex__(memo)
