"""Objects bound to their process: they hold addresses, locks and threads that mean nothing in another process."""

from __future__ import annotations

from typing import NoReturn

from ..errors import CopyError


class ProcessBound:
    """Can be neither pickled nor deep-copied: both raise CopyError."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise CopyError(
            f"{type(self).__name__}: cannot be copied or pickled, because it is bound to the memory and the threads "
            "of the process that loaded it. Load the model in the child process, or fork after loading; threads of "
            "one process may share it"
        )

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce_ex__(memo)
