"""`flashjanus doctor`: show what is installed, what the machine has, and which implementation each op will use."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flashjanus import __version__
from flashjanus.builtin import NAMES, builtin_folder
from flashjanus.cli.console import Console
from flashjanus.cli.machine import machine_facts
from flashjanus.cli.options import add_output_options
from flashjanus.errors import CheckpointError, DeviceError, PlanError

if TYPE_CHECKING:
    import torch

REQUIRED = ("torch", "numpy", "safetensors", "tokenizers", "pillow")
OPTIONAL = {
    "huggingface_hub": "models by hub id",
    "tqdm": "progress bars",
    "triton": "Triton kernels",
    "flash-attn": "attention by FlashAttention on a GPU",
    "xformers": "attention by xFormers on a GPU",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check the installation",
        description="Show what is installed, which kernels are built, and which implementation each op will use and "
        "why. The exit code is 0 if the engine can run, else 1.",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto, the CPU)")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    report = examine(args.device)
    console.text(format_report(report))
    console.result(report)
    return 0 if report["ok"] else 1


def examine(device: str) -> dict[str, Any]:
    """The whole report. Each of "problems" is {"problem", "fix", "fatal"}. "ok" is false if one is fatal."""
    problems: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "flashjanus": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": _packages(problems),
        "models": _models(problems),
        "machine": machine_facts(),
        "gpus": [],
        "device": None,
        "dtype": None,
        "native": None,
        "ops": None,
        "problems": problems,
    }
    if report["packages"]["torch"] is not None:
        _examine_engine(report, device)
    report["ok"] = not any(problem["fatal"] for problem in problems)
    return report


def _packages(problems: list[dict[str, Any]]) -> dict[str, str | None]:
    """Installed versions by name, None for a missing package."""
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for name in (*REQUIRED, *OPTIONAL):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
            if name in REQUIRED:
                problems.append(_problem(f"{name} is not installed", f"pip install {name}"))
    return versions


def _models(problems: list[dict[str, Any]]) -> dict[str, str | None]:
    """Folders of the built-in models by name, None for an incomplete model."""
    folders: dict[str, str | None] = {}
    for name in NAMES:
        try:
            folders[name] = str(builtin_folder(name))
        except CheckpointError as error:
            folders[name] = None
            problems.append(_problem(str(error), "until then name another model with --model", fatal=False))
    return folders


def _problem(problem: str, fix: str, *, fatal: bool = True) -> dict[str, Any]:
    return {"problem": problem, "fix": fix, "fatal": fatal}


def _examine_engine(report: dict[str, Any], device: str) -> None:
    from flashjanus.engine.device import native
    from flashjanus.engine.device.capabilities import default_dtype, resolve_device

    problems = report["problems"]
    report["gpus"] = _gpus()
    missing = native.available()
    report["native"] = {"missing": missing} if missing else native.build_info()
    if missing:
        problems.append(_problem(missing, "until then the slower torch implementations serve", fatal=False))
    try:
        chosen, why = resolve_device(device)
    except DeviceError as error:
        problems.append(_problem(str(error), "use --device auto"))
        return
    dtype, why_dtype = default_dtype(chosen)
    report["device"] = {"device": str(chosen), "why": why}
    report["dtype"] = {"dtype": str(dtype).removeprefix("torch."), "why": why_dtype}
    report["ops"] = _ops(chosen, problems)


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {"name": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "memory_bytes": gpu.total_memory} for gpu in found
    ]


def _ops(device: torch.device, problems: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For every op, the implementation chosen on `device` (for some dtype and shape), and why others are refused."""
    from flashjanus.engine.ops import all_ops

    report: dict[str, dict[str, Any]] = {}
    for name, op in all_ops().items():
        row: dict[str, Any] = {"implementations": list(op.implementations), "chosen": None, "refused": {}}
        try:
            implementation, row["refused"] = op.choose(device, (), {})
            row["chosen"] = implementation.name
        except PlanError as error:
            problems.append(_problem(str(error), "use --device cpu, or reinstall with the kernels it names"))
        report[name] = row
    return report


def format_report(report: dict[str, Any]) -> str:
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    machine, native = report["machine"], report["native"]
    yield f"flashjanus {report['flashjanus']}, python {report['python']}, {report['system']}"
    yield "\npackages"
    for name, version in report["packages"].items():
        use = f" ({OPTIONAL[name]})" if name in OPTIONAL else ""
        yield f"  {name:<16} {version or 'not installed'}{'' if version else use}"
    yield "\nbuilt-in models"
    for name, folder in report["models"].items():
        yield f"  {name:<16} {folder or 'incomplete'}"
    yield "\nmachine"
    yield f"  {'cpu':<16} {machine['cpu'] or 'unknown'}, {machine['architecture']}"
    yield f"  {'cores':<16} {machine['cores']}, {machine['usable_threads']} threads usable"
    yield f"  {'instructions':<16} {' '.join(machine['instruction_sets']) or 'unknown'}"
    yield f"  {'memory':<16} {_gib(machine['memory_bytes'])}, {_gib(machine['available_bytes'])} available"
    for gpu in report["gpus"]:
        yield f"  {'gpu':<16} {gpu['name']}, sm_{gpu['capability'].replace('.', '')}, {_gib(gpu['memory_bytes'])}"
    if not report["gpus"]:
        yield f"  {'gpu':<16} none"
    if native is not None:
        yield "\nnative module"
        for name, value in native.items():
            yield f"  {name:<24} {' '.join(value) if isinstance(value, list) else value or 'none'}"
    if report["ops"] is not None:
        yield "\nruns on"
        yield f"  {'device':<16} {report['device']['device']} ({report['device']['why']})"
        yield f"  {'dtype':<16} {report['dtype']['dtype']} ({report['dtype']['why']})"
        yield "\nops"
        width = max(len(name) for name in report["ops"])
        for name, row in report["ops"].items():
            first = "first choice" if len(row["implementations"]) > 1 else "the only one"
            why = "; ".join(f"not {refused}: {reason}" for refused, reason in row["refused"].items())
            yield f"  {name:<{width}}  {row['chosen'] or 'none':<8}  {why or first}"
    yield "\nproblems" if report["problems"] else "\nno problems"
    for problem in report["problems"]:
        yield f"  {'error' if problem['fatal'] else 'note'}: {problem['problem']}\n    {problem['fix']}"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"
