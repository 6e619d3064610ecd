"""Writes pictures of the shapes world with their captions and questions.

    python examples/shapes/data_set.py OUT --split train --count 1000 --seed 0

OUT gets 000000.png, 000001.png, ... and scenes.jsonl, one line per picture: its scene, its caption with what that
promises (none for scenes of mixed things), and a question with its answer on every topic that the scene has one for.
Picture k follows from seed, split and k alone. OUT appears whole or not at all.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from flashjanus.disk.writing import write_text
from flashjanus.measure.evaluation import language, world
from PIL import Image

KINDS: tuple[world.Kind, ...] = (*language.CAPTIONED, "mixed")
SPLITS: tuple[world.Split, ...] = get_args(world.Split)


def examples(split: world.Split, count: int, seed: int) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    """Pictures and their records, the kinds of scenes taking turns."""
    for k in range(count):
        rng = np.random.default_rng((seed, SPLITS.index(split), k))
        scene = world.sample_scene(rng, split, KINDS[k % len(KINDS)])
        caption = None if scene.kind == "mixed" else asdict(language.caption(rng, scene))
        asked = [language.question(rng, scene, topic) for topic in language.TOPICS]
        record = {
            "image": f"{k:06}.png",
            "split": split,
            "scene": asdict(scene),
            "caption": caption,
            "questions": [asdict(question) for question in asked if question is not None],
        }
        yield Image.fromarray(world.render(scene)), record


def write_data_set(out: Path, split: world.Split, count: int, seed: int) -> None:
    """Raises FileExistsError where there is something at `out` already."""
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another folder, or remove it")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    lines = []
    for image, record in examples(split, count, seed):
        image.save(partial / record["image"])
        lines.append(json.dumps(record) + "\n")
    write_text(partial / "scenes.jsonl", "".join(lines))
    partial.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.count < 1 or chosen.seed < 0:
        parser.error(f"expected a count of at least 1 and a seed of at least 0, got {chosen.count} and {chosen.seed}")
    try:
        write_data_set(chosen.out, chosen.split, chosen.count, chosen.seed)
    except OSError as error:
        parser.exit(1, f"{error}\n")
    print(f"{chosen.count} pictures are in {chosen.out}")


if __name__ == "__main__":
    main()
