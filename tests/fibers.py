"""csrc/cuda compiled by g++ and run on the CPU, with fibers for threads (tests/kernels/cuda_on_cpu)."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any
from unittest.mock import patch

import torch
from flashjanus.engine.device import native

ROOT = Path(__file__).resolve().parents[1]
HEADERS = ROOT / "tests/kernels/cuda_on_cpu"
KERNELS = sorted((ROOT / "csrc/cuda").glob("*.cu"))
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
CUDA = torch.device("cuda")
CONSTANTS = {"w", "weight", "bias", "scale", "norm"}
"""Arguments that no kernel writes: one that starts early may read them before it waits for the others."""
PRODUCTION_SHARED = {
    "depthwise_norm_kernel<Tile<3, 6>": 83088,
    "depthwise_norm_kernel<Tile<1, 4>": 79904,
    "decode_attention_kernel": 4680,
    "gemv_kernel<float": 32768,
    "sample_token_kernel": 34320,
}
"""Bytes of dynamic shared memory a block at the released model's largest sizes, which the compiler cannot know."""

_counter = itertools.count()


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@functools.cache
def _generated() -> Path:
    folder = Path(_folder().name) / "generated"
    _run([sys.executable, str(ROOT / "csrc/generate.py"), str(folder)])
    return folder


def _compile(source: Path) -> Path:
    import pybind11

    output = Path(_folder().name) / f"{source.stem}-{next(_counter)}.o"
    includes = [HEADERS, ROOT / "csrc", _generated(), pybind11.get_include(), sysconfig.get_path("include")]
    flags = [*FLAGS, "-Wno-unknown-pragmas", *(f"-I{path}" for path in includes)]
    level = "-O1" if source.suffix == ".cu" else "-O0"  # bindings take longer to compile than to run
    _run(["g++", level, *flags, "-x", "c++", "-c", str(source), "-o", str(output)])
    return output


@functools.cache
def _objects() -> Mapping[Path, Path]:
    # made before the threads, each of which would make one and drop all but the last
    bindings = [ROOT / "csrc/bindings/cuda.cpp", _generated() / "fields.cpp", HEADERS / "module.cpp"]
    sources = [*KERNELS, *bindings]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(sources, pool.map(_compile, sources), strict=True))


def module(changed: Mapping[str, str] = MappingProxyType({})) -> ModuleType:
    """flashjanus._C's CUDA half; `changed` gives other text for some kernels, by file name."""
    objects = dict(_objects())
    name = f"cuda_on_cpu_{next(_counter)}"  # a new one: pybind11 keeps a module for each
    folder = Path(_folder().name) / name
    folder.mkdir()
    for kernel, text in changed.items():
        (folder / kernel).write_text(text)
        objects[ROOT / "csrc/cuda" / kernel] = _compile(folder / kernel)
    library = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    entry = f"-Wl,--defsym=PyInit_{name}=PyInit_cuda_on_cpu"
    _run(["g++", "-shared", entry, *map(str, objects.values()), "-o", str(library)])
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _window(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and bytes that a tensor reaches over."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (reach + 1) * tensor.element_size()


@contextmanager
def running_on(fibers: ModuleType, architecture: int, backwards: bool = False) -> Iterator[None]:
    """`cuda` implementations take CPU tensors and run on fibers, as if compiled for sm_NN.

    Threads, warps and blocks take turns from the first to the last, or `backwards`: some races show in one order only.
    """

    def run_cuda(kernel: str, device: torch.device, **arguments: Any) -> None:
        members = {"threads": 1} | native.plain(kernel, torch.device("cpu"), arguments)
        tensors = {name: it for name, it in arguments.items() if isinstance(it, torch.Tensor)}
        fibers.delay([_window(it) for name, it in tensors.items() if name not in CONSTANTS])
        getattr(fibers, f"{kernel}_cuda")(**members, stream=0)

    fibers.emulate(architecture)
    fibers.order(backwards)
    with (
        patch.object(native, "run_cuda", run_cuda),
        patch.object(native, "cuda_available", lambda: None),
    ):
        yield
