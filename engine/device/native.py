"""The compiled kernels, behind checks on torch tensors: the only place that imports `flashjanus._C`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType

import torch

from ..errors import NativeError

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # Dtype in csrc/kernel.h


@functools.cache
def _load() -> ModuleType | str:
    """The module, or why it is absent."""
    try:
        import flashjanus._C as module
    except ModuleNotFoundError:
        return (
            "flashjanus._C is not built: the installation found no C++ compiler, cmake, ninja or Python headers. "
            "Install them and reinstall (`pip install -v` names what is missing)"
        )
    except ImportError as error:
        return f"flashjanus._C is built but does not load on this machine ({error}). Reinstall it here"
    return module


def available() -> str | None:
    """None where the native module loads, else the reason in words."""
    module = _load()
    return module if isinstance(module, str) else None


def pressed() -> bool:
    """Whether other processes compete for the cores that this thread's team runs on, as far as the kernels can tell."""
    module = _load()
    return not isinstance(module, str) and bool(module.pressed(torch.get_num_threads()))


def cuda_available() -> str | None:
    """None where the native module has CUDA kernels (a GPU is not looked for), else the reason in words."""
    module = _load()
    if isinstance(module, str):
        return module
    if module.build_info()["cuda"] is None:
        return "flashjanus._C was built without CUDA kernels: put nvcc on PATH and reinstall with FLASHJANUS_CUDA=on"
    return None


def _module() -> ModuleType:
    module = _load()
    if isinstance(module, str):
        raise NativeError(module)
    return module


def build_info() -> dict[str, object]:
    """`compiler`, `cuda` (version or None), `cuda_architectures`, `instruction_sets_built` and `instruction_sets`
    (the built ones that this machine executes). Raises NativeError if the native module is absent."""
    return dict(_module().build_info())


def instruction_sets() -> list[str]:
    """The CPU variants that this build has and this machine executes, narrowest first. Each is a valid `isa`."""
    return list(_module().build_info()["instruction_sets"])


def members(kernel: str) -> list[str]:
    """The members of a kernel's struct of arguments, in order. Raises NativeError for an unknown kernel."""
    known = _module().members
    if kernel not in known:
        raise NativeError(f"expected a kernel out of {', '.join(known)}, got {kernel!r}")
    return list(known[kernel])


@dataclass(frozen=True)
class _Recorded:
    """A requested kernel call, and the storages that its addresses point into."""

    kernel: str
    arguments: dict[str, int | float | str]
    storages: set[int]


_recording: ContextVar[list[_Recorded] | None] = ContextVar("recording", default=None)


@contextmanager
def recording() -> Iterator[list[_Recorded]]:
    """Within it, CPU kernel calls are recorded instead of run."""
    recorded: list[_Recorded] = []
    token = _recording.set(recorded)
    try:
        yield recorded
    finally:
        _recording.reset(token)


def bind(run: Callable[[], None], tensors: Iterable[torch.Tensor]) -> Callable[[], None]:
    """`run` itself, or a faster equivalent where `run` only calls one CPU kernel on `tensors`.

    The equivalent is that kernel call with its arguments already converted; it takes a tenth of the Python time.
    Addresses are taken now, so `tensors` must not move. Anything that `run` does besides the call, such as copying a
    tensor that is not contiguous, happens once, now, and such a call is not bound. Raises NativeError.
    """
    with recording() as recorded:
        run()
    owned = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    if len(recorded) != 1 or not recorded[0].storages <= owned:
        return run
    try:
        bound = getattr(_module(), f"{recorded[0].kernel}_bound")(**recorded[0].arguments)
    except ValueError as error:
        raise NativeError(str(error)) from error
    return lambda: bound(torch.get_num_threads())


def _call(
    kernel: str,
    arguments: Mapping[str, int | float],
    tensors: Iterable[object],
    **options: int | str,
) -> None:
    recording = _recording.get()
    if recording is not None:
        storages = {it.untyped_storage().data_ptr() for it in tensors if isinstance(it, torch.Tensor)}
        recording.append(_Recorded(kernel, {**arguments, **options}, storages))
        return
    try:
        getattr(_module(), kernel)(**arguments, **options)
    except (ValueError, RuntimeError) as error:
        raise NativeError(str(error)) from error


def _refuses_dtypes(dtypes: Iterable[torch.dtype]) -> str | None:
    return next((f"computes in float32 or bfloat16, not in {dtype}" for dtype in dtypes if dtype not in _DTYPES), None)


def not_a_cpu(device: torch.device) -> str | None:
    """Why what runs on a CPU cannot run on `device`, or None."""
    return None if device.type == "cpu" else f"runs on the CPU, not on {device.type}"


def refuses(device: torch.device, *dtypes: torch.dtype) -> str | None:
    """Why no CPU kernel can serve tensors of `dtypes` on `device`, or None."""
    return _refuses_dtypes(dtypes) or not_a_cpu(device) or available()


def amx_available() -> str | None:
    """None where this build and this machine have AMX, else the reason in words."""
    module = _load()
    if isinstance(module, str):
        return module
    info = module.build_info()
    if not info["amx_built"]:
        return "flashjanus._C was built without AMX: by a compiler that does not know it, or not for Linux on x86-64"
    return None if info["amx"] else "this CPU has no AMX with bfloat16, or the system keeps its tiles from processes"


def refuses_amx(device: torch.device, *dtypes: torch.dtype) -> str | None:
    """Why no AMX kernel can serve tensors of `dtypes` on `device`, or None."""
    return _refuses_dtypes(dtypes) or not_a_cpu(device) or amx_available()


def refuses_cuda(device: torch.device, *dtypes: torch.dtype) -> str | None:
    """Why no CUDA kernel can serve tensors of `dtypes` on `device`, or None."""
    on_device = cuda_available() if device.type == "cuda" else f"runs on a CUDA device, not on {device.type}"
    return _refuses_dtypes(dtypes) or on_device


Argument = torch.Tensor | torch.dtype | float | None
"""The types that a member of a kernel's struct may have."""


def plain(kernel: str, device: torch.device, arguments: Mapping[str, Argument]) -> dict[str, int | float]:
    """Members of an argument struct as numbers: a tensor becomes its address (None becomes null), a dtype its code.

    Raises NativeError where a tensor is not on `device`.
    """
    members: dict[str, int | float] = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            if value.device.type != device.type:
                raise NativeError(f"{kernel}: expected {name} on {device.type}, got {value.device}")
            members[name] = value.data_ptr()
        elif isinstance(value, torch.dtype):
            members[name] = _DTYPES[value]
        else:
            members[name] = 0 if value is None else value
    return members


def run(kernel: str, *, isa: str | None = None, **arguments: Argument) -> None:
    """Run one CPU kernel on all of torch's threads; `arguments` are the members of its struct in csrc/cpu.

    The memory at an address is not checked: the caller vouches for shapes and strides, from a plan that was checked.
    Raises NativeError.
    """
    members = {"threads": torch.get_num_threads()} | plain(kernel, torch.device("cpu"), arguments)
    _call(kernel, members, arguments.values(), isa=isa or "")


def run_cuda(kernel: str, device: torch.device, **arguments: Argument) -> None:
    """Run one CUDA kernel on the current stream of `device`. Its struct shares `threads` with a CPU kernel; it is 1."""
    members = {"threads": 1} | plain(kernel, device, arguments)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        _call(f"{kernel}_cuda", members, arguments.values(), stream=stream)
