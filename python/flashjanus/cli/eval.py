"""`flashjanus eval shapes | geneval | choices`: score the pictures and answers of a model."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashjanus.cli.console import Console
from flashjanus.cli.destination import Destination
from flashjanus.cli.options import add_model_options, add_option, add_output_options, load_model, model_facts
from flashjanus.cli.progress import progress_of
from flashjanus.errors import InputError, OutputError
from flashjanus.sampling.options import USUAL, ImageOptions

if TYPE_CHECKING:
    from flashjanus.measure.evaluation.geneval import GenevalPrompt
    from flashjanus.measure.evaluation.pictures import NumberedPicture


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "eval",
        help="score a model",
        description="Score the pictures and answers of a model, with 95 % confidence intervals.",
    )
    suites = parser.add_subparsers(dest="suite", metavar="SUITE", required=True)
    _add_shapes(suites)
    _add_geneval(suites)
    _add_choices(suites)


def _add_shapes(suites: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = suites.add_parser(
        "shapes",
        help="score a model of colored shapes; the pixels are the judge",
        description="Score a model of the shapes world on combinations that it has not seen in training: pictures in "
        "GenEval's six categories, judged by their pixels; answers by topic; and the Frechet distance in the space of "
        "the model's own understanding encoder. Also measure how exact the judge is and how much the VAE preserves.",
    )
    parser.add_argument("--samples", type=int, default=200, metavar="N", help="prompts per category (default: 200)")
    parser.add_argument("--questions", type=int, default=100, metavar="N", help="questions per topic (default: 100)")
    parser.add_argument("--only", choices=("draw", "answer"), help="score only pictures or only answers")
    _add_drawing_options(parser)
    add_model_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=_run_shapes)


def _add_geneval(suites: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = suites.add_parser(
        "geneval",
        help="score pictures of GenEval prompts with your detector",
        description="Score pictures by GenEval's rules. The pictures are those in --images (in GenEval's folders, or "
        "in files that the key 'image' in every line of PROMPTS names), or else the model draws them. You provide the "
        "detector; without one, --out draws the pictures and does not score them.",
    )
    parser.add_argument("prompts", metavar="PROMPTS.jsonl", help="GenEval's evaluation_metadata.jsonl or one like it")
    parser.add_argument("--images", metavar="DIR", help="folder of pictures to score; nothing is drawn")
    parser.add_argument(
        "--detector",
        metavar="MODULE:NAME",
        help="function that takes a PIL image and returns a list of flashjanus.measure.evaluation.Detection",
    )
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="pictures drawn per prompt (default: 4)")
    parser.add_argument("--out", metavar="DIR", help="new folder for the drawn pictures, in GenEval's layout")
    _add_drawing_options(parser)
    add_model_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=_run_geneval)


def _add_choices(suites: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = suites.add_parser(
        "choices",
        help="score answers to multiple-choice questions",
        description="Score answers to multiple-choice questions as in MMBench and SEED-Bench: a JSON list of objects "
        "with image (a file or base64), question, hint, A, B, C, D (or choice_a, ...), answer and category.",
    )
    parser.add_argument("questions", metavar="QUESTIONS.json", help="the questions")
    parser.add_argument("--images", metavar="DIR", help="folder of the pictures (default: the folder of the questions)")
    add_model_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=_run_choices)


def _add_drawing_options(parser: argparse.ArgumentParser) -> None:
    add_option(parser, ImageOptions, "num_inference_steps", USUAL["num_inference_steps"])
    add_option(parser, ImageOptions, "guidance_scale", USUAL["guidance_scale"])
    add_option(parser, ImageOptions, "seed", 0)
    parser.add_argument(
        "--sheet", metavar="FILE.png", help="write a sheet of some pictures with their prompts, verdicts and scores"
    )


def _run_shapes(args: argparse.Namespace, console: Console) -> int:
    _check_sheet(args.sheet)
    model = load_model(args, console)
    from flashjanus.measure.evaluation.shapes import evaluate_shapes

    report = evaluate_shapes(
        model,
        samples=args.samples,
        questions=args.questions,
        steps=args.num_inference_steps,
        guidance=args.guidance_scale,
        seed=args.seed,
        only=args.only,
        sheet=args.sheet,
        progress=progress_of(console),
    )
    console.text(str(report))
    console.result({**report.to_json(), "sheet": args.sheet})
    return 0


def _run_geneval(args: argparse.Namespace, console: Console) -> int:
    from flashjanus.api.png import save_png
    from flashjanus.measure.evaluation import pictures
    from flashjanus.measure.evaluation.detectors import load_detector, no_detector
    from flashjanus.measure.evaluation.geneval import read_prompts
    from flashjanus.measure.evaluation.shapes_report import table

    begun = time.perf_counter()
    if args.images is not None and args.out is not None:
        raise InputError("--out is for drawn pictures, and --images draws none; leave one of them out")
    if args.detector is None and (args.out is None or args.sheet is not None):
        raise no_detector()
    _check_sheet(args.sheet)
    out = None if args.out is None else _new_folder(args.out)
    prompts = read_prompts(Path(args.prompts))
    detector = None if args.detector is None else load_detector(args.detector)
    facts: dict[str, Any] = {"prompts": args.prompts}
    paths: list[str] = []
    if args.images is not None:
        facts["images_folder"] = args.images
        shown = pictures.load_pictures(pictures.find_pictures(prompts, Path(args.images)), progress_of(console))
    else:
        model = load_model(args, console)
        facts |= {
            **model_facts(model),
            "steps": args.num_inference_steps,
            "guidance": args.guidance_scale,
            "seed": args.seed,
        }
        shown = pictures.draw_pictures(
            model,
            prompts,
            samples=args.samples,
            steps=args.num_inference_steps,
            guidance=args.guidance_scale,
            seed=args.seed,
            progress=progress_of(console),
        )
        if out is not None:
            shown = _written(shown, prompts, out, paths)
    if detector is None:
        for _ in shown:
            pass
        console.text("\n".join(paths))
        console.result({**facts, "paths": paths, "seconds": time.perf_counter() - begun})
        return 0
    columns = pictures.SHEET_COLUMNS if args.sheet else 0
    report, rows = pictures.judge_pictures(prompts, shown, detector, shown=columns)
    if args.sheet:
        save_png(pictures.geneval_sheet(report, rows), args.sheet)
    console.text(table("GenEval", report.tags, report.overall))
    console.result(
        {
            **facts,
            **report.to_json(),
            "detector": args.detector,
            "paths": paths,
            "sheet": args.sheet,
            "seconds": time.perf_counter() - begun,
        }
    )
    return 0


def _run_choices(args: argparse.Namespace, console: Console) -> int:
    from flashjanus.measure.evaluation.choices import evaluate_choices, read_choices
    from flashjanus.measure.evaluation.shapes_report import table

    begun = time.perf_counter()
    choices, skipped = read_choices(Path(args.questions), None if args.images is None else Path(args.images))
    if skipped:
        console.note(f"{skipped} question{'s' * (skipped > 1)} about videos left out")
    model = load_model(args, console)
    report = evaluate_choices(model, choices, skipped=skipped, progress=progress_of(console))
    console.text(table("answers", report.categories, report.overall))
    console.text(f"{report.unread} replies without an option's letter, counted as wrong")
    console.result(
        {
            **model_facts(model),
            "questions": args.questions,
            **report.to_json(),
            "seconds": time.perf_counter() - begun,
        }
    )
    return 0


def _written(
    shown: Iterator[NumberedPicture], prompts: list[GenevalPrompt], out: Path, paths: list[str]
) -> Iterator[NumberedPicture]:
    """Write each picture below `out`, append its path to `paths`, and pass it on."""
    from flashjanus.measure.evaluation.pictures import write_picture

    for number, name, image in shown:
        write_picture(out, prompts[number], name, image)
        paths.append(str(out / name))
        yield number, name, image


def _check_sheet(sheet: str | None) -> None:
    """Refuse a file that could not be written, before the long work starts."""
    if sheet is None:
        return
    if not sheet.lower().endswith(".png") or Destination(sheet, 1, overwrite=True).file is None:
        raise InputError(f"--sheet {sheet}: expected FILE.png")


def _new_folder(out: str) -> Path:
    folder = Destination(f"{out}/", 1, overwrite=True).folder
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"--out {out}: expected a new or empty folder, because old pictures would be scored too")
    return folder
