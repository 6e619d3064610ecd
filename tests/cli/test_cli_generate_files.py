"""The files of `flashjanus generate`: there as soon as they are drawn, under names of their own, and how to go on."""

from __future__ import annotations

import errno
import gc
import re
import sys
import weakref
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace

import pytest
from flashjanus.api.janusflow import ROWS_AT_ONCE
from flashjanus.errors import InputError
from PIL import Image


def paths_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestRunsThatEndBeforeTheirTime:
    COMMAND = ("generate", "a", "b", "--num-images", str(ROWS_AT_ONCE), "--seed", "5", "--steps", "1")

    @pytest.mark.parametrize(
        ("failure", "code"),
        [(KeyboardInterrupt(), 130), (InputError("prompt: no"), 2), (MemoryError("none left"), None)],
    )
    def test_what_was_drawn_is_there_and_counted(self, cli, model, tmp_path: Path, capsys, failure, code) -> None:
        model.fail, model.batches = failure, 1
        first = [f"a-{5 + i}.png" for i in range(ROWS_AT_ONCE)]
        words = (
            f"{ROWS_AT_ONCE} of {2 * ROWS_AT_ONCE} images were saved in {tmp_path}; to continue, repeat the command "
            f"with --seed 5 --skip {ROWS_AT_ONCE}\n"
        )
        if code is None:
            with pytest.raises(MemoryError):
                cli(*self.COMMAND, "--out", tmp_path)
            assert capsys.readouterr().err.endswith(f"flashjanus: {words}")
        else:
            result = cli(*self.COMMAND, "--out", tmp_path, "--quiet")
            assert (result.code, result.err.endswith(f"; {words}")) == (code, True)
            assert result.out.splitlines() == [str(tmp_path / name) for name in first]
        assert paths_of(tmp_path) == sorted(first)
        model.fail = None
        assert cli(*self.COMMAND, "--out", tmp_path, "--skip", str(ROWS_AT_ONCE)).code == 0
        assert model.calls[-1][1]["prompt"] == ["b"] * ROWS_AT_ONCE
        every = first + [f"b-{5 + i}.png" for i in range(ROWS_AT_ONCE, 2 * ROWS_AT_ONCE)]
        assert paths_of(tmp_path) == sorted(every)
        for seed, name in enumerate(every, 5):
            assert Image.open(tmp_path / name).tobytes() == model.picture(seed).tobytes()

    def test_in_json(self, cli, model, tmp_path: Path) -> None:
        model.fail, model.batches = KeyboardInterrupt(), 1
        value = cli(*self.COMMAND, "--out", tmp_path, "--json").json
        assert value["error"] == {"type": "Interrupted", "message": "interrupted"}
        assert value["seeds"] == list(range(5, 5 + ROWS_AT_ONCE))
        assert value["prompts"] == ["a"] * ROWS_AT_ONCE
        assert [Path(path).name for path in value["paths"]] == [f"a-{seed}.png" for seed in value["seeds"]]

    def test_a_full_disk(self, cli, model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save, written = Image.Image.save, []

        def full(self, file, **options) -> None:
            if len(written) == 3:
                file.write(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(save(self, file, **options))

        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "save", full)
            result = cli(*self.COMMAND, "--out", tmp_path)
        assert result.code == 2
        assert "No space left on device; 3 of 16 images were saved" in result.err
        assert result.err.endswith("--seed 5 --skip 3\n")
        assert paths_of(tmp_path) == ["a-5.png", "a-6.png", "a-7.png"]
        assert cli(*self.COMMAND, "--out", tmp_path, "--skip", "3").code == 0
        assert len(paths_of(tmp_path)) == 2 * ROWS_AT_ONCE

    def test_one_that_saved_nothing(self, cli, model, tmp_path: Path) -> None:
        model.fail = KeyboardInterrupt()
        result = cli(*self.COMMAND, "--out", tmp_path / "new")
        assert result.err == "flashjanus: interrupted; no image was saved\n"
        assert paths_of(tmp_path) == []

    def test_a_seed_that_was_not_given_is_told(self, cli, model, tmp_path: Path) -> None:
        model.fail, model.batches = KeyboardInterrupt(), 1
        result = cli("generate", "a", "--num-images", "9", "--steps", "1", "--out", tmp_path)
        seed = re.search(r"--seed (\d+) --skip 8\n$", result.err).group(1)
        assert paths_of(tmp_path) == [f"a-{int(seed) + i}.png" for i in range(8)]

    @pytest.mark.parametrize("options", [["--best-of", "3"], ["--numerics", "official"]])
    def test_images_that_belong_together_are_left_out_together(self, cli, model, tmp_path: Path, options) -> None:
        """The first two prompts are saved, and half of the third: it is drawn again."""
        model.fail, model.batches = KeyboardInterrupt(), 1
        command = ["generate", *"abcdef", "--num-images", "3", "--seed", "5", "--out", tmp_path, *options]
        assert cli(*command).err.endswith(
            f"8 of 18 images were saved in {tmp_path}; to continue, repeat the command with --seed 5 --skip 6\n"
        )
        model.fail = None
        assert cli(*command, "--skip", "6").code == 0
        asked = model.calls[-1][1]
        assert (asked["prompt"], asked["num_images_per_prompt"]) == (list("cdef"), 3)
        assert asked["seed"] == 5 + 2 * (3 if options[0] == "--best-of" else 1)
        result = cli(*command, "--skip", "4")
        assert (result.code, "--skip: expected a multiple of 3" in result.err) == (2, True)

    @pytest.mark.parametrize("skip", ["-1", "4", "1.5"])
    def test_an_impossible_skip_is_refused_before_the_model_loads(self, cli, model, tmp_path: Path, skip: str) -> None:
        result = cli("generate", "a", "b", "--num-images", "2", "--skip", skip, "--out", tmp_path)
        assert (result.code, "--skip" in result.err) == (2, True)
        assert model.calls == []

    def test_images_are_not_kept_once_they_are_saved(self, cli, model, tmp_path: Path) -> None:
        alive: list[int] = []
        images = []

        def watched(prompt, **options):
            for out in type(model).stream_images(model, prompt, **options):
                gc.collect()
                alive.append(sum(image() is not None for image in images))
                images.extend(weakref.ref(image) for image in out.images)
                yield out

        model.stream_images = watched
        assert cli("generate", "a", "--num-images", str(5 * ROWS_AT_ONCE), "--steps", "1", "--out", tmp_path).code == 0
        assert len(images) == 5 * ROWS_AT_ONCE
        assert max(alive) <= 2 * ROWS_AT_ONCE


def test_a_name_that_is_taken_meanwhile_is_left_alone(cli, model, tmp_path: Path) -> None:
    """Another process writes the same names while this one draws."""
    command = ["generate", "a", "--num-images", "2", "--seed", "1", "--steps", "1", "--out", tmp_path]

    def taken(*_: object, **__: object):
        (tmp_path / "a-1.png").write_text("theirs")
        (tmp_path / "a-2.png").symlink_to(tmp_path / "nowhere")
        yield from type(model).stream_images(model, *_, **__)

    model.stream_images = taken
    assert [Path(path).name for path in cli(*command).out.split()] == ["a-1-2.png", "a-2-2.png"]
    assert (tmp_path / "a-1.png").read_text() == "theirs"
    assert (tmp_path / "a-2.png").is_symlink()
    assert not (tmp_path / "nowhere").exists()


SAVE = """
import sys
from PIL import Image
from flashjanus.cli.destination import Destination

destination, own = Destination(sys.argv[1], 60, False), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for seed in range(60):
    print(destination.save(Image.new("RGB", (2, 2), (own, 0, 0)), "a", seed, {}))
"""


def test_processes_that_want_the_same_names_each_get_their_own(spawn, tmp_path: Path) -> None:
    processes = [spawn("-c", SAVE, tmp_path / "new", str(n), module=False, stdin=PIPE) for n in range(2)]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.write(b"\n")
        process.stdin.flush()
    paths = [process.communicate(timeout=60)[0].decode().split() for process in processes]
    assert [len(own) for own in paths] == [60, 60]
    assert paths_of(tmp_path / "new") == sorted(Path(path).name for own in paths for path in own)
    for n, own in enumerate(paths):
        assert all(Image.open(path).getpixel((0, 0)) == (n, 0, 0) for path in own)


def test_images_of_one_seed_have_names_of_their_own(cli, model, tmp_path: Path) -> None:
    command = ["generate", "a", "--num-images", "3", "--seed", "1", "--out", tmp_path, "--numerics", "official"]
    model.stream_images = lambda prompt, **options: iter(
        [SimpleNamespace(images=[model.picture(s) for s in range(3)], seeds=[1, 1, 1], scores=None, timings={})]
    )
    expected = ["a-1.png", "a-1-2.png", "a-1-3.png"]
    for _ in range(2):
        assert [Path(path).name for path in cli(*command, "--overwrite").out.split()] == expected
    assert [Path(path).name for path in cli(*command).out.split()] == ["a-1-4.png", "a-1-5.png", "a-1-6.png"]


def test_a_path_on_a_terminal_does_not_stand_in_the_progress_bar(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from flashjanus.cli.console import Console

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    said = []
    console = Console(json=False, quiet=False)
    with console.progress(2, "drawing") as show:
        show(1)
        console._bar.clear, console._bar.refresh = (lambda: said.append("clear")), (lambda: said.append("refresh"))
        console.text("a.png")
    console.text("b.png")
    assert said == ["clear", "refresh"]
    assert capsys.readouterr().out == "a.png\nb.png\n"
