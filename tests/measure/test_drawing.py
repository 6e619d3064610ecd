"""Axes, bars and lines: where values land, and which ticks are drawn."""

from __future__ import annotations

import re
import xml.etree.ElementTree

import pytest
from flashjanus.measure.drawing import Bar, Line, Scale, bars, lines, page


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_scale_keeps_its_ends_and_puts_the_rest_on_them(logarithmic: bool) -> None:
    scale = Scale(1.0, 100.0, 50.0, 250.0, logarithmic)
    assert [scale.at(value) for value in (1.0, 100.0, 0.5, 1000.0)] == [50.0, 250.0, 50.0, 250.0]
    assert scale.at(10.0) == pytest.approx(150.0 if logarithmic else 50 + 200 * 9 / 99)


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0.0, 3.2, 0, 1), [0, 1, 2, 3]),
        (Scale(0.0, 110.0, 0, 1), [0, 20, 40, 60, 80, 100]),
        (Scale(0.9, 6.0, 0, 1, True), [1, 2, 3, 5]),
        (Scale(0.01, 4.0, 0, 1, True), [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]),
        (Scale(1e-5, 10.0, 0, 1, True), [1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 10]),
    ],
)
def test_ticks_are_round_and_few(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks() == pytest.approx(ticks)


def test_all_values_fit_on_a_scale_around_them() -> None:
    scale = Scale.around([2.0], 0, 100)
    assert scale.at(2.0) == pytest.approx(50)
    assert scale.ticks()


def test_only_a_whisker_beyond_the_axis_has_an_arrow_head() -> None:
    rows = [Bar("short", 2.0, 1.0, 2.2, "two"), Bar("long", 3.0, 1.0, 90.0, "three")]
    for logarithmic in (False, True):
        body, height = bars("t", "b", rows, "axis", str, logarithmic=logarithmic, mark=1.0)
        assert body.count("<polyline") == 1
        assert height > 2 * 22
        found = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', body)]
        assert found[1] > found[0] > 0
        assert "<polyline" not in bars("t", "b", rows[:1], "axis", str, logarithmic=logarithmic)[0]


def test_lines_are_explained_in_the_order_of_their_ends() -> None:
    low = Line([(1.0, 1.0), (8.0, 2.0)], "low", "#111111")
    high = Line([(1.0, 1.5), (8.0, 9.0)], "high", "#222222", "6 4")
    body, _ = lines("t", "b", [low, high], "images", "{:g} s".format)
    assert body.index(">high<") < body.index(">low<")
    assert body.count("<circle") == 4
    assert 'stroke-dasharray="6 4"' in body
    assert {">1<", ">8<", ">images<", ">2 s<"} <= set(re.findall(r">[^<]+<", body))
    xml.etree.ElementTree.fromstring(page("<&", "below", [(body, 100)]))
