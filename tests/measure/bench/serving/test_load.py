"""What is sent, and when: by its seed alone."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from flashjanus.errors import InputError
from flashjanus.measure.bench.serving.contents import BUILT_IN, PICTURES, picture, read_prompts
from flashjanus.measure.bench.serving.load import MOST_CALLS, arrivals, calls, read_mix


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        ("image=0.3,chat=0.5,vision=0.2", {"image": 0.3, "chat": 0.5, "vision": 0.2}),
        ("image=3, chat=1", {"image": 0.75, "chat": 0.25}),
        ("vision", {"vision": 1.0}),
        ("image=1,chat=0", {"image": 1.0}),
    ],
)
def test_weights_are_shares(text: str, mix: dict[str, float]) -> None:
    assert read_mix(text) == pytest.approx(mix)


@pytest.mark.parametrize("text", ["", "audio=1", "image=1,image=2", "image=x", "image=-1", "image=nan", "image=0"])
def test_another_mix_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--mix: expected KIND=WEIGHT"):
        read_mix(text)


def test_arrivals_are_a_poisson_process() -> None:
    found = arrivals(50.0, 1, seconds=200.0)
    gaps = [after - before for before, after in zip([0.0, *found], found, strict=False)]
    assert min(gaps) > 0
    assert found[-1] < 200
    # of an exponential distribution mean and standard deviation are equal; 10,000 gaps give each within 5 %
    assert statistics.fmean(gaps) == pytest.approx(0.02, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.02, rel=0.05)
    assert arrivals(50.0, 1, count=20) == found[:20]
    assert arrivals(50.0, 2, count=20) != found[:20]
    assert arrivals(50.0, 1, seconds=200.0, count=3) == found[:3]


@pytest.mark.parametrize("bounds", [{}, {"seconds": 1e6}, {"count": MOST_CALLS + 1}])
def test_a_run_has_an_end(bounds: dict[str, float]) -> None:
    with pytest.raises(InputError, match="at most 100000 requests"):
        arrivals(10.0, 0, **bounds)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at most 100000 requests"):
        calls({"chat": 1.0}, BUILT_IN, 0, [None] * (MOST_CALLS + 1))


def test_the_same_seed_asks_the_same_whatever_the_times() -> None:
    mix = {"image": 0.3, "chat": 0.5, "vision": 0.2}
    found = calls(mix, BUILT_IN, 3, [None] * 2000)
    timed = calls(mix, BUILT_IN, 3, [*map(float, range(2000))])
    assert [(one.kind, one.prompt, one.picture) for one in found] == [(c.kind, c.prompt, c.picture) for c in timed]
    assert [one.due for one in timed[:3]] == [0.0, 1.0, 2.0]
    assert {(one.kind == "vision") == (one.picture is not None) for one in found} == {True}
    shares = {kind: sum(one.kind == kind for one in found) / 2000 for kind in mix}
    assert shares == pytest.approx(mix, abs=0.04)
    assert len({one.picture for one in found}) == PICTURES + 1


def test_pictures_differ() -> None:
    shown = {picture(number) for number in range(PICTURES)}
    assert len(shown) == PICTURES
    assert all(one.startswith("data:image/png;base64,") for one in shown)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text('a red circle\n\n{"kind": "chat", "prompt": "Why?"}\n{"prompt": "for all"}\n')
    assert read_prompts(file, ["image", "chat"]) == {
        "image": ["a red circle", "for all"],
        "chat": ["a red circle", "Why?", "for all"],
        "vision": ["a red circle", "for all"],
    }
    file.write_text('{"kind": "chat", "prompt": "Why?"}\n')
    with pytest.raises(InputError, match="at least one prompt of kind image"):
        read_prompts(file, ["image"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not JSON"),
        (b'{"kind": "audio", "prompt": "x"}', "got '{"),
        (b'{"kind": [], "prompt": "x"}', "got '{"),
        (b'{"prompt": " "}', "got '{"),
        (b'{"prompt": "x", "size": 3}', "got '{"),
        (b"\xff", "UTF-8"),
        (b"", "an empty file"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: bytes, words: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(text)
    with pytest.raises(InputError, match=words):
        read_prompts(file, ["image"])
    for path, said in ((tmp_path, "expected a regular file"), (tmp_path / "none", "no such file")):
        with pytest.raises(InputError, match=said):
            read_prompts(path, ["image"])
