"""Hooks of mkdocs: benchmarks/results becomes pages of the site, and links to it lead there.

On GitHub the links of these pages lead to the files themselves.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "benchmarks/results"
SHOWN = (".md", ".svg")
"""Of the results: the others are data, which pages name and do not link to."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted((ROOT / RESULTS).iterdir()):
        if path.suffix in SHOWN:
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return re.sub(rf"\]\((\.\./)+{RESULTS}/", "](results/", markdown)
