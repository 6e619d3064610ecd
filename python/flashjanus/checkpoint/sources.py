"""Named tensors, from files or from memory, read one at a time.

File sources map the file. The pages that a read touches stay resident as long as the mapping exists, so a source drops
its handle and maps the file again before it has handed out more than a small share of the file.
"""

from __future__ import annotations

import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open

from flashjanus.checkpoint.names import official_names, state_dict_in
from flashjanus.disk.paths import cannot_read, check_readable
from flashjanus.errors import CheckpointError

# Mapped bytes handed out per opening, unless one tensor is larger: a minimum, and a share of the file, because parsing
# the header again takes milliseconds and a thirty-second of the weights is small compared to all of them.
REOPEN_BYTES = 8 * 2**20
REOPEN_SHARE = 32
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
"""File suffixes that torch.save uses."""
MAX_HEADER = 100_000_000
"""The format's limit on the bytes of a safetensors header."""

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


# What torch's unpickler raises on garbage: an empty stack, an unknown memo key, a wrong argument.
_DAMAGED_PICKLE = (RuntimeError, EOFError, ValueError, OSError, LookupError, TypeError, AttributeError, AssertionError)


class TensorInfo(NamedTuple):
    """What is known of a stored tensor without reading it. dtype is torch's name, or else the file's own."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class TensorSource(Protocol):
    """Named tensors. A tensor that `read` returns must not be changed, and should be dropped before the next `read`.

    close: release what reading holds; a later `read` acquires it again.
    """

    label: str

    def names(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> torch.Tensor: ...

    def close(self) -> None: ...


def _info(tensor: torch.Tensor) -> TensorInfo:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided:
        dtype = f"{tensor.layout} {dtype}"
    return TensorInfo(tuple(tensor.shape), dtype, tensor.numel() * tensor.element_size())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class StateDictSource:
    """The tensors of a state dict in memory."""

    def __init__(self, state_dict: Mapping[str, torch.Tensor], label: str = "state_dict"):
        self.label = label
        self._tensors = state_dict
        infos = self._infos()
        if infos is None:  # first access: some mappings make their tensors when asked for
            self._tensors = state_dict_in(state_dict, label)
            infos = self._infos() or {}
        self._stored = official_names(infos)
        self._names = {name: infos[stored] for name, stored in self._stored.items()}

    def names(self) -> Mapping[str, TensorInfo]:
        return self._names

    def read(self, name: str) -> torch.Tensor:
        return self._tensors[self._stored[name]].detach()

    def _infos(self) -> dict[str, TensorInfo] | None:
        """None if a value is not a tensor."""
        infos: dict[str, TensorInfo] = {}
        for name, tensor in self._tensors.items():
            if not isinstance(tensor, torch.Tensor):
                return None
            if not isinstance(name, str):
                raise CheckpointError(f"{self.label}: expected names with torch tensors, got {name!r:.80}")
            infos[name] = _info(tensor)
        return infos

    def close(self) -> None:
        """Does nothing: the tensors belong to the caller."""


class _MappedFile(ABC):
    """One file of tensors, read through a handle that is reopened as REOPEN_BYTES says."""

    def __init__(self, path: Path):
        self.path = path
        check_readable(path)
        self.names = self._list()
        self._handle: Any = None
        self._handed_out = 0
        self._budget = max(REOPEN_BYTES, path.stat().st_size // REOPEN_SHARE)

    def read(self, name: str) -> torch.Tensor:
        size = self.names[name].nbytes
        if self._handed_out + size > self._budget:
            self.close()
        if self._handle is None:
            self._handle = self._open()
        self._handed_out += size
        return self._get(self._handle, name)

    def close(self) -> None:
        self._handle = None
        self._handed_out = 0

    @abstractmethod
    def _list(self) -> dict[str, TensorInfo]: ...

    @abstractmethod
    def _open(self) -> Any: ...

    @abstractmethod
    def _get(self, handle: Any, name: str) -> torch.Tensor: ...


class _SafetensorsFile(_MappedFile):
    def _open(self) -> Any:
        try:
            return safe_open(self.path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.path}: not a complete safetensors file ({_amiss(self.path) or error}); fetch it again"
            ) from None
        except OSError as error:
            raise cannot_read(self.path, error) from None

    def _list(self) -> dict[str, TensorInfo]:
        handle = self._open()
        found = {}
        for name in handle.keys():  # noqa: SIM118 (safe_open is not a mapping)
            part = handle.get_slice(name)
            kind = SAFETENSORS_DTYPES.get(part.get_dtype())
            shape = tuple(part.get_shape())
            size = kind.itemsize if kind else 1
            dtype = str(kind).removeprefix("torch.") if kind else part.get_dtype()
            found[name] = TensorInfo(shape, dtype, torch.Size(shape).numel() * size)
        return found

    def _get(self, handle: Any, name: str) -> torch.Tensor:
        tensor: torch.Tensor = handle.get_tensor(name)
        return tensor


def _amiss(path: Path) -> str | None:
    """What is wrong with a damaged safetensors file, as far as its first bytes tell."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start.startswith((b"PK", b"\x80")):
            return "torch.save wrote it: a .bin under another name"
        if not 2 <= length <= MAX_HEADER:
            return None
        if size < 8 + length:
            return f"cut short: {size} bytes, fewer than its header has"
        try:
            header = json.loads(file.read(length))
            end = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
    return f"cut short: {size} of {end} bytes" if size < end else None


class _TorchFile(_MappedFile):
    """pytorch_model.bin through torch's restricted unpickler: no code in the file runs."""

    def _open(self) -> Mapping[str, torch.Tensor]:
        try:
            data = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:  # torch's own message would suggest loading it unsafely
            raise CheckpointError(
                f"{self.path}: refused: it is damaged, or its pickle holds more than tensors; no code in it was run. "
                "Use a safetensors file"
            ) from None
        except _DAMAGED_PICKLE as error:
            raise CheckpointError(
                f"{self.path}: not a file that torch.save wrote in its zip format ({_first_line(error)}); "
                "fetch it again, or save it as safetensors"
            ) from None
        return state_dict_in(data, str(self.path))

    def _list(self) -> dict[str, TensorInfo]:
        return {str(name): _info(tensor) for name, tensor in self._open().items()}

    def _get(self, handle: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        return handle[name].detach()


class FileSource:
    """The tensors of one or several files in one format. A tensor that two files hold is an error.

    index: tensor name -> file name, from a sharded checkpoint's index; it is checked against the files' contents.
    """

    def __init__(self, paths: list[Path], label: str, index: Mapping[str, str] | None = None):
        self.label = label
        self.paths = paths
        infos: dict[str, TensorInfo] = {}
        self._file_of: dict[str, _MappedFile] = {}
        self._current: _MappedFile | None = None
        for path in paths:
            opener: Callable[[Path], _MappedFile] = _TorchFile if path.suffix in TORCH_SUFFIXES else _SafetensorsFile
            file = opener(path)
            for name, info in file.names.items():
                if name in self._file_of:
                    raise CheckpointError(
                        f"{label}: tensor {name} is in two files, {self._file_of[name].path.name} and {path.name}; "
                        "keep one of them"
                    )
                self._file_of[name] = file
                infos[name] = info
        for name, file_name in (index or {}).items():
            if name not in self._file_of or self._file_of[name].path.name != file_name:
                raise CheckpointError(f"{label}: the index puts tensor {name} in {file_name}, which does not hold it")
        self._stored = official_names(infos)
        self._names = {name: infos[stored] for name, stored in self._stored.items()}

    def names(self) -> Mapping[str, TensorInfo]:
        return self._names

    def read(self, name: str) -> torch.Tensor:
        """A view of the mapped file."""
        stored = self._stored[name]
        file = self._file_of[stored]
        if self._current is not None and self._current is not file:
            self._current.close()
        self._current = file
        return file.read(stored)

    def close(self) -> None:
        if self._current is not None:
            self._current.close()
