"""The pictures for GenEval prompts: found in a folder or drawn, judged by a detector, and written if asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from flashjanus.api.janusflow import JanusFlow
from flashjanus.api.png import save_new_png
from flashjanus.disk.writing import write_text
from flashjanus.errors import InputError, OutputError
from flashjanus.inputs.images import load_image
from flashjanus.measure.evaluation.detectors import Detector, detect
from flashjanus.measure.evaluation.drawing import Progress, draw, silent
from flashjanus.measure.evaluation.geneval import GenevalPrompt, GenevalReport, Judged, faults
from flashjanus.measure.evaluation.records import read_records
from flashjanus.measure.evaluation.sheet import Picture, draw_sheet
from flashjanus.sampling import checks

NumberedPicture = tuple[int, str, Image.Image]
"""The number of its prompt, its file name, and the picture."""
SAMPLES = 4
"""Pictures per prompt, as GenEval draws them."""
SHEET_COLUMNS = 6


def find_pictures(prompts: Sequence[GenevalPrompt], folder: Path) -> list[tuple[int, Path]]:
    """(number of the prompt, file) of every picture.

    If the prompts' lines name an "image", it is a file in `folder`. Otherwise `folder` has GenEval's layout: the
    pictures of line N (from 0) are N in five digits / samples / NNNN.png. Raises InputError for what is missing.
    """
    if not folder.is_dir():
        raise InputError(f"--images {folder}: expected a folder")
    named = [prompt.record.has("image") for prompt in prompts]
    if any(named):
        return [(number, prompt.record.path("image", folder)) for number, prompt in enumerate(prompts)]
    found = []
    for number, prompt in enumerate(prompts):
        home = folder / f"{number:05}"
        samples = sorted(path for path in (home / "samples").glob("*.png") if path.stem.isdigit() and path.is_file())
        if not samples:
            raise InputError(
                f"{home / 'samples'}: expected pictures NNNN.png for {prompt.record.where}, got none; use GenEval's "
                "layout, or give every line of the prompts' file an 'image'"
            )
        _check_belongs(home / "metadata.jsonl", prompt)
        found += [(number, path) for path in samples]
    return found


def _check_belongs(path: Path, prompt: GenevalPrompt) -> None:
    """Raise InputError if the folder's own metadata is that of another prompt, for instance of another prompt file."""
    if path.is_file():
        text = read_records(path)[0].text("prompt")
        if text != prompt.text:
            raise InputError(
                f"{path}: 'prompt': expected {prompt.text!r:.80} of {prompt.record.where}, got {text!r:.80}"
            )


def load_pictures(found: Sequence[tuple[int, Path]], progress: Progress = silent) -> Iterator[NumberedPicture]:
    """Open the pictures that `find_pictures` found, one by one. Raises InputError for a file that is not a picture."""
    with progress(len(found), "judging") as show:
        for done, (number, path) in enumerate(found, 1):
            yield number, str(path), load_image(path)
            show(done)


def draw_pictures(
    model: JanusFlow,
    prompts: Sequence[GenevalPrompt],
    *,
    samples: int = SAMPLES,
    steps: int = 30,
    guidance: float = 2.0,
    seed: int = 0,
    progress: Progress = silent,
) -> Iterator[NumberedPicture]:
    """Draw `samples` pictures of each prompt; picture k of all starts from seed + k. Names follow GenEval's layout."""
    samples = checks.integer("samples", samples, 1, 10_000)
    wanted = [(number, sample) for number in range(len(prompts)) for sample in range(samples)]
    texts = [prompts[number].text for number, _ in wanted]
    drawn = draw(model, texts, seed=seed, progress=progress, num_inference_steps=steps, guidance_scale=guidance)
    for (number, sample), image in zip(wanted, drawn, strict=True):
        yield number, f"{number:05}/samples/{sample:04}.png", image


def write_picture(folder: Path, prompt: GenevalPrompt, name: str, image: Image.Image) -> None:
    """Write a drawn picture into `folder`, with the prompt's line beside it, in GenEval's layout.

    Raises OutputError, also if the picture exists already, because another run then writes into the same folder.
    """
    path = folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {path.parent}: {error.strerror}") from error
    save_new_png(image, [path])
    write_text(path.parent.parent / "metadata.jsonl", json.dumps(prompt.record.data, allow_nan=False) + "\n")


def judge_pictures(
    prompts: Sequence[GenevalPrompt],
    pictures: Iterator[NumberedPicture],
    detector: Detector,
    *,
    shown: int = 0,
) -> tuple[GenevalReport, dict[str, list[Picture]]]:
    """The report on all pictures, and the first `shown` pictures of each tag for a sheet."""
    judged: list[Judged] = []
    sheet: dict[str, list[Picture]] = {}
    for number, name, image in pictures:
        prompt = prompts[number]
        one = Judged(number, prompt.tag, prompt.text, name, tuple(faults(prompt, detect(detector, image))))
        judged.append(one)
        row = sheet.setdefault(prompt.tag, [])
        if len(row) < shown:
            row.append(Picture(image, prompt.text, one.correct, "; ".join(one.faults)))
    return GenevalReport(judged), sheet


def geneval_sheet(report: GenevalReport, rows: dict[str, list[Picture]]) -> Image.Image:
    """A page with the pictures of `judge_pictures`, under the scores as headings."""
    tags = report.tags
    return draw_sheet(f"GenEval  {report.overall}", [(f"{tag}  {tags[tag]}", row) for tag, row in rows.items()])
