"""Writes kernels.h, the lists of kernels, and fields.cpp, the members of their structs: python csrc/generate.py FOLDER

A kernel is a .cpp of cpu/ or of cpu/amx/ or a .cu of cuda/. Its arguments are the members of the struct <Kernel>Params,
which stands in the kernel's own header, beside the source or, for a CUDA kernel of which there is a CPU one, beside
that. A line of such a struct that is not one member, as `const float* x;  // [rows]`, is an error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
KERNELS = {"CPU": "cpu/*.cpp", "AMX": "cpu/amx/*.cpp", "CUDA": "cuda/*.cu"}
MEMBER = re.compile(r"(?:const )?\w+\*? (\w+);")
FIELDS = """
template <>
const Fields<{0}>& fields() {{
    using P = {0};
    static const Fields<P> all{{{1}}};
    return all;
}}
"""


def struct_of(kernel: str) -> str:
    return "".join(part.capitalize() for part in kernel.split("_")) + "Params"


def header_of(source: Path) -> Path:
    """The header that holds a kernel's struct, or another name for another kernel's."""
    struct = struct_of(source.stem)
    places = source.with_suffix(".h"), ROOT / "cpu" / f"{source.stem}.h"
    header = next((path for path in places if path.is_file()), places[source.suffix == ".cu"])
    text = header.read_text(encoding="utf-8") if header.is_file() else ""
    if not re.search(rf"^(struct {struct} \{{|using {struct} = \w+;)$", text, re.MULTILINE):
        sys.exit(f"{source}: expected a line `struct {struct} {{`, its arguments, in {header}")
    return header


def structs(header: Path) -> Iterator[tuple[str, list[str]]]:
    """Every struct of arguments in a header, and its members."""
    name, members = "", []
    for number, line in enumerate(header.read_text(encoding="utf-8").splitlines(), 1):
        code = line.partition("//")[0].strip()
        if begins := re.fullmatch(r"struct (\w+Params) \{", code):
            name, members = begins[1], []
        elif name and code == "};":
            yield name, members
            name = ""
        elif name and code:
            member = MEMBER.fullmatch(code)
            if member is None:
                sys.exit(f"{header}:{number}: expected one member of {name}, as `const float* x;`, got `{code}`")
            members.append(member[1])


def write(path: Path, text: str) -> None:
    """Write a file only if its contents change, so that nothing is compiled again without need."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def main(folder: Path) -> None:
    lists, headers = "", set()
    for name, pattern in KERNELS.items():
        sources = sorted(ROOT.glob(pattern))
        headers |= {header_of(source) for source in sources}
        kernels = "".join(f" \\\n    KERNEL({source.stem}, {struct_of(source.stem)})" for source in sources)
        lists += f"\n#define FLASHJANUS_{name}_KERNELS(KERNEL){kernels}\n"
    found = sorted(headers)
    includes = "".join(f'#include "{header.relative_to(ROOT).as_posix()}"\n' for header in found)
    fields = "".join(
        FIELDS.format(name, ", ".join(f'{{"{member}", &P::{member}}}' for member in members))
        for header in found
        for name, members in structs(header)
    )
    by = "// Written by csrc/generate.py.\n"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "kernels.h", f"{by}#pragma once\n\n{includes}{lists}")
    write(folder / "fields.cpp", f'{by}#include "bindings/bindings.h"\n\nnamespace flashjanus {{\n{fields}\n}}\n')


if __name__ == "__main__":
    main(Path(sys.argv[1]))
