"""Labeled points: words of points that lie together stand apart, within the panel."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

from flashjanus.measure.drawing import ABOVE, HEIGHT, Point, points


def test_words_of_points_at_one_place_stand_apart() -> None:
    found = [Point(1.0, 5.0, 4.0, 6.0, f"mode {i}", "black") for i in range(8)]
    svg, height = points("title", "below", found, "seconds", "{:g}".format)
    texts = [t for t in ElementTree.fromstring(f"<svg>{svg}</svg>").iter("text") if (t.text or "").startswith("mode")]
    rows = sorted(float(t.attrib["y"]) for t in texts)
    assert len(rows) == 8
    assert min(b - a for a, b in itertools.pairwise(rows)) >= 12
    assert rows[0] >= ABOVE
    assert rows[-1] < ABOVE + HEIGHT < height
