"""Documents are true to the code: links lead somewhere, what is generated is up to date, lists are complete."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import flashjanus
import pytest
import yaml
from flashjanus import errors
from flashjanus.measure.words import seconds

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
OTHERS = ("*.md", "benchmarks/**/*.md", "examples/**/*.md", "python/**/*.md", ".github/**/*.md")
DOCUMENTS = [*PAGES, *sorted(path for pattern in OTHERS for path in ROOT.glob(pattern))]


def prose(path: Path) -> str:
    """A document without its code."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ {4}\S.*$", "", text, flags=re.MULTILINE))


def links(path: Path) -> Iterator[str]:
    """What a document links to or shows, in this repository."""
    for target in re.findall(r"\]\(([^()\s]+)\)", prose(path)):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(path: Path) -> set[str]:
    """Of headings, as GitHub and mkdocs make them."""
    code = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in links(path):
        file, _, anchor = target.partition("#")
        there = path if not file else (path.parent / file).resolve()
        assert there.exists(), f"{path.name} links to {target}"
        assert there == ROOT or ROOT in there.parents, f"{path.name} links to {target}, outside of the repository"
        assert not anchor or anchor in anchors(there), f"{path.name} links to {target}, and there is no such heading"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_of_the_site_link_to_pages_of_the_site(path: Path) -> None:
    """To others of docs/, and to the results, which become pages (docs/hooks.py)."""
    allowed = (ROOT / "docs", ROOT / "benchmarks/results")
    for target in links(path):
        there = (path.parent / target.partition("#")[0]).resolve()
        assert any(folder in (there, *there.parents) for folder in allowed), f"{path.name} links to {target}"


def test_the_site_s_menu_has_every_page() -> None:
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted([*(str(page.relative_to(ROOT / "docs")) for page in PAGES), "results/README.md"])


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli.md", "kernels.md"])
def test_what_is_generated_is_up_to_date(page: str, reference: ModuleType) -> None:
    there = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert there == reference.whole(page), f"docs/{page} is out of date: run `python docs/reference.py`"


def test_every_error_is_explained() -> None:
    """With its meaning, the class by which it is caught besides, and what to do."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    told = re.findall(
        r"^### (\w+)\n\n(.+) It is a subclass of `(\w+)`\.\n\n\*\*What to do:\*\* (.+)\n", page, re.MULTILINE
    )
    classes = {name for name, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, Exception)}
    assert {name for name, *_ in told} == classes
    assert len(told) == len(classes)
    for name, _, base, _ in told:
        assert base in {one.__name__ for one in getattr(errors, name).__mro__[1:]}, name


def test_the_design_page_names_every_room() -> None:
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    rooms = [
        path.parent.name for folder in ("python/flashjanus", "engine") for path in (ROOT / folder).glob("*/__init__.py")
    ]
    assert len(rooms) > 10
    assert [room for room in sorted(rooms) if f"`{room}/`" not in page] == []


def test_the_start_page_lists_every_extra() -> None:
    listed = re.findall(r"^\| `flashjanus\[([\w-]+)\]` \|", (ROOT / "docs/index.md").read_text(encoding="utf-8"), re.M)
    section = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]\n")[1]
    assert sorted(listed) == sorted(re.findall(r"^([\w-]+) = \[", section.split("\n[")[0], re.MULTILINE))


def result(name: str) -> Any:
    return json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))


def rows_under(heading: str) -> list[list[str]]:
    """Cells of the rows of docs/presets.md's table with this heading of its second column."""
    page = (ROOT / "docs/presets.md").read_text(encoding="utf-8")
    [found] = re.findall(rf"^\| mode \| {heading}.*\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in found.splitlines()]


NAMES = {
    "`exact`": "exact",
    "`balanced`": "balanced",
    "`fast`": "fast",
    "`exact` in int8": "int8",
    "`balanced` in int8": "int8-balanced",
    "`fast` in int8": "int8-fast",
    "the better of two `fast` images": "fast-best-of-2",
}
"""Of modes: in the tables of prices, and in the results."""


def test_prices_at_the_published_sizes_are_those_measured() -> None:
    modes = {mode["mode"]: mode for mode in result("cpu-2026-11-22-quality-full.json")["modes"]}
    rows = rows_under("one image")
    assert len(rows) == len(modes)
    for name, image, share in rows:
        mode = modes[NAMES[name]]
        assert image == f"{mode['image_s']['median']:.3g} s"
        assert share == (f"{mode['time_over_exact']['value']:.2f}" if name != "`exact`" else "1")


def test_prices_of_the_built_in_model_are_those_measured() -> None:
    modes = {mode["mode"]: mode for mode in result("cpu-2026-11-22-quality-shapes.json")["modes"]}
    rows = rows_under("share of the time")
    assert len(rows) > 5
    for name, share, distance, right in rows:
        mode = modes[NAMES[name]]
        over = mode["time_over_exact"], mode["distance_over_exact"]
        told = ["1", "1.00"] if name == "`exact`" else [f"{one['value']:.2f}" for one in over]
        assert [share, distance] == told, name
        assert right == f"{mode['pictures']['overall']['score']:.3f}", name
        assert f"{mode['answers']['overall']['score']:.3f}" == "0.971", "as the text says"


@pytest.mark.parametrize(("name", "suffix"), [("none", ""), ("`int8`", "-int8"), ("`int4`", "-int4")])
def test_times_of_quantizations_are_those_measured(name: str, suffix: str) -> None:
    [(*_, step, token)] = [row for row in rows_under("weights of the language model") if row[0] == name]
    records = result(f"cpu-2026-11-22-latency{suffix}.json")["records"]
    ours = {one["stage"]: seconds(one["median_s"]) for one in records if one["engine"] == "flashjanus"}
    assert token == ours["token"]
    assert step == ours.get("step", "as int8")


def test_the_changelog_and_the_citation_have_the_version() -> None:
    changes = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    released = [change.split()[0] for change in changes if change != "Unreleased"]
    assert released[0] == flashjanus.__version__, "CHANGELOG.md: expected a section for this version after Unreleased"
    assert len(set(released)) == len(released)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == flashjanus.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_forms_for_issues_are_what_github_takes(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    assert {field["type"] for field in form["body"]} <= {"input", "textarea", "dropdown", "checkboxes", "markdown"}
    assert any(field.get("validations", {}).get("required") for field in form["body"])
