"""The package under build/gpu/lib, with a native module for one GPU, which is built unless it exists already.

    python benchmarks/gpu_stages/build.py ARCHITECTURE [SECONDS]    # as for CMake, e.g. 90-real; limit of the build

build/gpu/native may come from another machine with the same Python. A module that was built from other sources, or does
not load, is built again.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE, LIB, TEMP = (ROOT / "build/gpu" / name for name in ("native", "lib", "temp"))
LONGEST = 90
"""Seconds of a build if none are given: a lease is short."""
LOADS = (
    "import sys; from importlib.machinery import ExtensionFileLoader as L; from importlib.util import *; "
    "s = spec_from_loader('_C', L('_C', sys.argv[1])); m = module_from_spec(s); s.loader.exec_module(m); "
    "sys.exit(m.build_info()['cuda'] is None)"
)


def sources(architecture: str) -> str:
    """Everything on which the contents of the module depend."""
    digest = hashlib.sha256(f"{architecture} {sys.implementation.cache_tag}".encode())
    for file in sorted([*(ROOT / "csrc").rglob("*"), ROOT / "CMakeLists.txt", ROOT / "setup.py"]):
        if file.is_file():
            digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()


def module() -> Path | None:
    """The module of this Python."""
    return next(NATIVE.rglob(f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"), None)


def present(architecture: str) -> bool:
    found, stamp = module(), NATIVE / f"sources-{sys.implementation.cache_tag}"
    if found is None or not stamp.is_file() or stamp.read_text() != sources(architecture):
        return False
    return subprocess.run([sys.executable, "-c", LOADS, found]).returncode == 0


def setup(seconds: float, *args: str | Path, **env: str) -> bool:
    """Return whether it succeeded in time."""
    command = [sys.executable, ROOT / "setup.py", "-q", *args]
    try:
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main() -> None:
    architecture, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else LONGEST
    if present(architecture):
        print(f"{module()}: built from these sources before")
    else:
        given = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        cmake = shlex.join([*given, f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"])
        places = "--build-lib", NATIVE, "--build-temp", TEMP
        if setup(seconds, "build_ext", *places, FLASHJANUS_CUDA="on", CMAKE_ARGS=cmake):
            (NATIVE / f"sources-{sys.implementation.cache_tag}").write_text(sources(architecture))
        else:
            print("The native module could not be built: Triton's and torch's implementations serve alone.")
    if not setup(LONGEST, "build_py", "--build-lib", LIB):
        sys.exit("The package could not be laid out under build/gpu/lib.")
    if present(architecture):
        built = module()
        assert built is not None
        shutil.copy(built, LIB / "flashjanus" / built.name)


if __name__ == "__main__":
    main()
