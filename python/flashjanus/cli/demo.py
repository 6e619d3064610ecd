"""`flashjanus demo`: draw, ask and score with the built-in model, and show everything on a page."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from flashjanus import __version__
from flashjanus.cli.console import Console
from flashjanus.cli.demo_page import Facts, Scores, Shown, page
from flashjanus.cli.destination import Destination
from flashjanus.cli.machine import machine_facts
from flashjanus.cli.options import add_output_options
from flashjanus.cli.progress import progress_of

if TYPE_CHECKING:
    from flashjanus import JanusFlow

ASKED = (
    ("a red circle to the left of a blue square", "Which is on the left, the circle or the square?"),
    ("three green triangles on a black background", "How many triangles are there?"),
    ("a yellow square above a purple circle", "What color is the square?"),
)
"""Prompts, each with a question about its picture."""
SEED, ENLARGE = 7, 4
SAMPLES, QUESTIONS = 4, 10
"""Pictures per category and questions per topic of the test set."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="draw pictures, ask about them, and show them on a page",
        description="Draw pictures with the built-in model, ask about them, score a small part of its test set, and "
        "write a page that shows the pictures, the answers, the times and the machine. The path of the page is "
        "printed last.",
    )
    parser.add_argument("--out", default="demo", metavar="DIR", help="output folder (default: demo)")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, console: Console) -> int:
    begun = time.perf_counter()
    destination = Destination(f"{args.out}/", len(ASKED), overwrite=True)
    console.text("Loading torch and the built-in model `shapes`, a JanusFlow of 9 million parameters ...")
    import torch

    from flashjanus import JanusFlow
    from flashjanus.disk.writing import write_text

    model = JanusFlow.from_pretrained("shapes")
    loaded = time.perf_counter() - begun
    console.text(
        f"Loaded in {loaded:.1f} s: {model.why}.\n\nDrawing {len(ASKED)} pictures, 30 denoising steps each ..."
    )
    shown = [_shown(model, number, destination, console) for number in range(len(ASKED))]

    prompts, questions = 6 * SAMPLES, 7 * QUESTIONS
    console.text(f"\nDrawing and judging {prompts} pictures of the test set, and asking {questions} questions ...")
    sheet = destination.folder / "sheet.png"
    scores = _scores(model, sheet, console)
    console.text(f"\nThe pictures with their verdicts: {sheet}")

    facts = Facts(
        machine=machine_facts(),
        threads=torch.get_num_threads(),
        why=model.why,
        versions={"flashjanus": __version__, "torch": torch.__version__},
        loaded=loaded,
        total=time.perf_counter() - begun,
    )
    path = destination.folder / "index.html"
    write_text(path, page(shown, sheet, scores, facts))
    console.text(f"\nDone in {facts.total:.0f} s. A page with all of it, to be opened in a browser:\n{path.resolve()}")
    console.result(
        {
            "page": str(path.resolve()),
            "sheet": str(sheet),
            "pictures": [one.to_json() for one in shown],
            "scores": {one.title: one.overall.to_json() for one in scores},
            "seconds": facts.total,
        }
    )
    return 0


def _shown(model: JanusFlow, number: int, destination: Destination, console: Console) -> Shown:
    """Draw one prompt, write its picture, and ask about it. Each result is printed at once."""
    from PIL import Image

    prompt, question = ASKED[number]
    console.check_interrupt()
    begun = time.perf_counter()
    [image] = model.generate_image(prompt, seed=SEED + number).images
    drawn = time.perf_counter()
    large = image.resize((image.width * ENLARGE, image.height * ENLARGE), Image.Resampling.NEAREST)
    path = destination.save(large, prompt, SEED + number, {"prompt": prompt, "seed": str(SEED + number)})
    console.text(f"  {path}  ({drawn - begun:.2f} s)")
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    asked = time.perf_counter()
    answer = model.chat([{"role": "user", "content": content}], max_new_tokens=16)
    answered = time.perf_counter() - asked
    assert isinstance(answer, str)
    answer = answer.strip()
    console.text(f"    {question} {answer}  ({answered:.2f} s)")
    return Shown(path, prompt, SEED + number, drawn - begun, question, answer, answered)


def _scores(model: JanusFlow, sheet: Path, console: Console) -> list[Scores]:
    """Score pictures, which are drawn on `sheet`, and answers. Each score is printed at once."""
    from flashjanus.api.png import save_png
    from flashjanus.measure.evaluation.answers import score_answers
    from flashjanus.measure.evaluation.sets import prompt_set, question_set
    from flashjanus.measure.evaluation.shapes import category_sheet, draw_prompts
    from flashjanus.measure.evaluation.shapes_report import GroupedShares, table
    from flashjanus.measure.evaluation.statistics import mean_of, shares_by_name

    progress = progress_of(console)
    drawn = draw_prompts(model, prompt_set(SAMPLES, 0), progress)
    right = shares_by_name((one.prompt.category, one.verdict.correct) for one in drawn)
    pictures = Scores("pictures right", right, mean_of(list(right.values())))
    save_png(category_sheet(f"shapes  {pictures.overall}", drawn, right), sheet)
    console.text(table(pictures.title, pictures.groups, pictures.overall))

    topics = GroupedShares(score_answers(model, question_set(QUESTIONS, 0), progress))
    answers = Scores("answers right", topics.groups, topics.overall)
    console.text(table(answers.title, answers.groups, answers.overall))
    return [pictures, answers]
