"""What techniques measured along a parameter, in the report."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compress_core.report import CurveFigures
from compress_core.report.curves import line
from compress_core.report.rendering import curves, page
from tests.core.test_report_page import BROWSER, Tree, browse
from tests.core.test_report_page import report as report  # noqa: PLC0414 - the fixture

VALUES = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12))
@example([(0.0, 5e-324)])
def test_every_point_lies_in_the_frame_and_the_line_runs_to_the_right(points):
    drawn = line(points)
    frame = drawn.frame
    for x, y in drawn.marks:
        assert frame.x <= x <= frame.x + frame.width
        assert frame.y <= y <= frame.y + frame.height
    along = [x for x, _ in drawn.marks]
    assert along == sorted(along)
    assert len(re.findall(r"[ML]", drawn.path)) == len(points)


def test_more_is_higher():
    (_, low), (_, high) = line([(0.0, 1.0), (1.0, 2.0)]).marks
    assert high < low


@pytest.fixture
def measured(report):
    found = CurveFigures(name="conv1 <b>", x="share that goes", y="accuracy", points=((0.25, 0.98), (0.5, 0.9)))
    pruned = report.steps["pruned"]
    told = pruned.model_copy(update={"metrics": pruned.metrics.model_copy(update={"curves": (found,)})})
    return report.model_copy(update={"steps": {**report.steps, "pruned": told}})


def test_a_curve_is_shown_with_its_words_below_its_step(report, measured):
    assert "on its way" not in page(report)
    (curve,) = curves(measured)["pruned"]
    assert curve.description == "accuracy over share that goes: from 0.98 at 0.25 to 0.9 at 0.5."
    tree = Tree(page(measured))
    assert "What pruned measured on its way" in [text for _, text in tree.all("h2")]
    assert [text for _, text in tree.all("figcaption")] == ["conv1 <b>"]
    assert f"conv1 <b>: {curve.description}" in [text for _, text in tree.all("title")]


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_page_with_curves_never_scrolls_sideways(measured, tmp_path, width):
    path = tmp_path / "report.html"
    probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    path.write_text(page(measured).replace("</body>", probe), encoding="utf-8")
    shown = browse(path, tmp_path, f"--window-size={width},900", "--dump-dom").stdout
    needed, there = map(int, re.search(r"<title>(\d+) of (\d+)</title>", shown).groups())
    assert needed <= there
