"""The report's page: its geometry, its HTML, and how a browser shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from compress_core.report import MEASURED, Machine, Metrics, QualityFigures, Report, Row, Times, wording
from compress_core.report.dag import BOX_HEIGHT, BOX_WIDTH, Node, depths, graph, shortened
from compress_core.report.pareto import pareto_front
from compress_core.report.rendering import page, plots
from compress_core.report.scatter import Point, linear_ticks, log_ticks, scatter, staircase
from compress_core.timing import Estimate

ATTACK = "<script>alert(1)</script>"
FRONT_POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


# The Pareto front.


def dominates(one, other):
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(FRONT_POINTS)
def test_the_front_is_exactly_what_nothing_dominates(points):
    expected = {index for index, point in enumerate(points) if not any(dominates(other, point) for other in points)}
    assert set(pareto_front(points)) == expected


@given(FRONT_POINTS)
def test_along_the_front_more_cost_buys_more_worth(points):
    front = [points[index] for index in pareto_front(points)]
    for one, other in pairwise(front):
        assert one == other or (one[0] < other[0] and one[1] < other[1])


def test_two_equal_points_are_both_on_the_front():
    assert sorted(pareto_front([(1, 1), (1, 1), (2, 1)])) == [0, 1]


# The scatter plot.


def point(name="a", cost=100.0, value=0.9, spread=0.01, **fields):
    return Point(name, cost, value, value - spread, value + spread, **fields)


costs = st.floats(1, 1e9)
values = st.floats(0.02, 0.98)


@given(st.lists(st.tuples(costs, values), min_size=1, max_size=8))
def test_every_mark_and_interval_lies_in_the_frame_in_the_order_of_its_figures(pairs):
    drawing = scatter([point(str(index), cost, value) for index, (cost, value) in enumerate(pairs)])
    frame = drawing.frame
    for mark in drawing.marks:
        assert frame.x <= mark.x <= frame.x + frame.width
        assert frame.y <= mark.high <= mark.y <= mark.low <= frame.y + frame.height
    for one, other in combinations(drawing.marks, 2):
        assert (one.x <= other.x) == (one.point.cost <= other.point.cost) or abs(one.x - other.x) < 1e-6
        assert (one.y >= other.y) == (one.point.value <= other.point.value) or abs(one.y - other.y) < 1e-6


def test_equal_ratios_of_cost_are_equal_distances():
    marks = scatter([point("a", 10), point("b", 100), point("c", 1000)]).marks
    assert marks[1].x - marks[0].x == pytest.approx(marks[2].x - marks[1].x)


@given(st.floats(1e-3, 1e6), st.floats(1.5, 1e4))
def test_a_logarithmic_axis_has_round_figures_inside_its_bounds(low, ratio):
    ticks = log_ticks(low, low * ratio)
    assert ticks == sorted(ticks) and all(low <= tick <= low * ratio for tick in ticks)
    assert 2 <= len(ticks) <= 12


def test_the_ticks_of_a_logarithmic_axis():
    assert log_ticks(40, 1100) == pytest.approx([50, 100, 200, 500, 1000])
    assert log_ticks(1, 1e5) == pytest.approx([1, 10, 100, 1000, 1e4, 1e5])


@given(st.floats(-10, 10), st.floats(1e-3, 50))
def test_a_linear_axis_has_few_evenly_spaced_figures(low, width):
    ticks = linear_ticks(low, low + width)
    assert 2 <= len(ticks) <= 7
    gaps = [after - before for before, after in pairwise(ticks)]
    assert max(gaps) == pytest.approx(min(gaps), rel=1e-6)


@given(costs, values, st.floats(-9, 6))
def test_a_single_network_has_figures_on_both_axes_whatever_the_metric_s_unit(cost, value, decade):
    drawing = scatter([point("a", cost, value * 10**decade, value * 10**decade / 50)], y_text="{:.4g}".format)
    assert len(drawing.x_ticks) >= 2
    assert len({tick.text for tick in drawing.y_ticks}) == len(drawing.y_ticks) >= 2


def test_small_metrics_are_told_apart():
    better, worse = scatter([point("a", 10, 1e-6, 1e-7), point("b", 20, 9e-6, 1e-6)], higher_is_better=False).marks
    assert better.y - worse.y > 200


@given(costs, st.floats(0.02, 0.98))
def test_equal_qualities_without_an_interval_have_figures_that_differ(cost, value):
    ticks = scatter([point("a", cost, value, 0), point("b", 2 * cost, value, 0)], y_text="{:.4g}".format).y_ticks
    assert len({tick.text for tick in ticks}) == len(ticks) >= 2


def test_labels_of_near_marks_do_not_cover_one_another():
    near = [point(name, cost, 0.9) for name, cost in (("pruned", 100), ("clipped", 100), ("int8", 104), ("onnx", 98))]
    labels = [mark.label for mark in scatter([*near, point("baseline", 5000, 0.99)]).marks]
    assert all(one.overlap(other) == 0 for one, other in combinations(labels, 2))


def test_the_front_is_drawn_as_a_staircase_of_its_marks_only():
    drawing = scatter([point("a", 10, 0.5), point("b", 20, 0.4), point("c", 40, 0.8)])
    assert [mark.on_front for mark in drawing.marks] == [True, False, True]
    first, _, last = drawing.marks
    assert drawing.front == f"M{first.x:.1f} {first.y:.1f}H{last.x:.1f}V{last.y:.1f}"
    assert staircase([]) == ""


def test_where_less_is_better_the_front_is_the_other_way_round():
    drawing = scatter([point("a", 10, 0.5), point("b", 20, 0.4), point("c", 40, 0.8)], higher_is_better=False)
    assert [mark.on_front for mark in drawing.marks] == [True, True, False]


# Figures in words.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (999, "999"),
        (999.6, "1 k"),
        (1234, "1.23 k"),
        (999_400, "999 k"),
        (999_700, "1 M"),
        (999_960_000, "1 G"),
        (2.5e12, "2.5 T"),
    ],
)
def test_a_count_is_rounded_before_its_unit_is_chosen(value, text):
    assert wording.count(value) == text
    assert wording.size(value) == (f"{text}B" if " " in text else f"{text} B")


@pytest.mark.parametrize(
    ("value", "text"), [(9.994, "9.99"), (9.996, "10.0"), (99.94, "99.9"), (99.97, "100"), (1234, "1234")]
)
def test_a_ratio_is_rounded_before_its_digits_are_chosen(value, text):
    assert wording.number(value) == text
    assert wording.rounded(99.97) == "100"


# The graph of the pipeline.

CHAIN = [
    Node("baseline"),
    Node("factored", "baseline"),
    Node("pruned", "factored", "baseline"),
    Node("clipped", "pruned"),
    Node("onnx", "clipped", export=True),
    Node("student", None, "clipped"),
]


def test_a_step_lies_one_column_after_the_last_of_what_it_needs():
    assert depths(CHAIN) == {"baseline": 0, "factored": 1, "pruned": 2, "clipped": 3, "onnx": 4, "student": 4}
    left = {box.node.name: box.x for box in graph(CHAIN).boxes}
    assert left["baseline"] < left["factored"] < left["pruned"] < left["clipped"] < left["onnx"] == left["student"]


def test_there_is_one_edge_for_each_input_and_each_teacher():
    edges = {(edge.source, edge.target, edge.teaches) for edge in graph(CHAIN).edges}
    assert edges == {
        ("baseline", "factored", False),
        ("factored", "pruned", False),
        ("baseline", "pruned", True),
        ("pruned", "clipped", False),
        ("clipped", "onnx", False),
        ("clipped", "student", True),
    }


@st.composite
def pipelines(draw):
    nodes: list[Node] = []
    for index in range(draw(st.integers(1, 9))):
        before = st.sampled_from([None, *(node.name for node in nodes)])
        nodes.append(Node(f"s{index}", draw(before), draw(before)))
    return nodes


def corners(path):
    """The points that a path goes through, with its level runs."""
    x = y = 0.0
    found = []
    for letter, figures in re.findall(r"([MCH])([^MCH]*)", path):
        numbers = [float(text) for text in figures.split()]
        x, y = (numbers[0], y) if letter == "H" else (numbers[-2], numbers[-1])
        found.append((letter, x, y))
    return found


@given(pipelines())
def test_no_box_covers_another_and_all_lie_in_the_picture(nodes):
    drawing = graph(nodes)
    for box in drawing.boxes:
        assert box.x >= 0 and box.x + BOX_WIDTH <= drawing.width
        assert box.y >= 0 and box.y + BOX_HEIGHT <= drawing.height
    for one, other in combinations(drawing.boxes, 2):
        assert abs(one.x - other.x) >= BOX_WIDTH or abs(one.y - other.y) >= BOX_HEIGHT


@given(pipelines())
def test_an_edge_joins_its_steps_and_runs_through_no_other(nodes):
    drawing = graph(nodes)
    boxes = {box.node.name: box for box in drawing.boxes}
    for edge in drawing.edges:
        path = corners(edge.path)
        source, target = boxes[edge.source], boxes[edge.target]
        assert path[0][1] == pytest.approx(source.x + BOX_WIDTH, abs=0.1)
        assert source.y < path[0][2] < source.y + BOX_HEIGHT
        assert path[-1][1] == pytest.approx(target.x, abs=0.1)
        assert target.y < path[-1][2] < target.y + BOX_HEIGHT
        for letter, x, y in path:
            if letter == "H":
                column = [box for box in drawing.boxes if abs(box.x + BOX_WIDTH - x) < 0.1]
                assert not any(box.y <= y <= box.y + BOX_HEIGHT for box in column)


def test_a_text_that_is_too_long_is_cut_visibly():
    assert shortened("prune", 10) == "prune"
    assert shortened("prune + distill + tune", 12) == "prune + dis…"
    assert shortened("prune + distill", 9) == "prune…"


# The page.


def estimate(value):
    return Estimate(value, 0.97 * value, 1.03 * value)


def row(name, source, size, share, speedup, *, kind="model", teacher=None, notes=(), remarks=(), use=None):
    opponent = "baseline" if kind == "model" else "baseline as onnx"
    latency = tuple(
        Times(
            batch=batch,
            threads=1,
            opponent=opponent,
            best="baseline as onnx",
            milliseconds=estimate(batch / speedup),
            speedup=estimate(speedup),
            speedup_to_best=estimate(speedup / 4),
            speedup_to_eager=estimate(speedup),
            disturbed=batch == 64 and name == "pruned",
        )
        for batch in (1, 64)
    )
    found = QualityFigures(name="accuracy", value=share, low=share - 0.012, high=share + 0.008, examples=450)
    return Row(
        name=name,
        kind=kind,
        format="torch" if kind == "model" else "onnx",
        input=source,
        teacher=teacher,
        use=use or {"tune": {}},
        opponent=opponent,
        is_step=name != "baseline as onnx",
        metrics=Metrics(quality=found, bytes=size, parameters=3000, nonzero=2000, macs=99000, notes=notes),
        smaller=1_200_000 / size,
        difference=100 * (share - 0.99),
        latency=latency,
        remarks=remarks,
    )


@pytest.fixture(scope="module")
def report() -> Report:
    rows = [
        row("baseline", None, 1_200_000, 0.99, 1),
        row("baseline as onnx", "baseline", 1_210_000, 0.99, 4, kind="export"),
        row(
            "pruned",
            "baseline",
            300_000,
            0.985,
            2,
            teacher="baseline",
            notes=[f"prune: {ATTACK}", 'clip: "quoted" & more'],
            remarks=[f"quality lost: {ATTACK}", "zeros are stored dense"],
            use={"prune": {"skip": [ATTACK]}, "distill": {}},
        ),
        row("onnx", "pruned", 78_000, 0.982, 15, kind="export", use={"export": {"format": "onnx"}}),
    ]
    return Report(
        reference="baseline",
        points=True,
        headline="onnx",
        order=tuple(found.name for found in rows),
        steps={found.name: found for found in rows},
        machine=Machine(
            processor=f"Chip {ATTACK}", cores=2, threads=1, device="cpu", system="Linux", versions={"torch": "2"}
        ),
        measured=MEASURED,
    )


class Tree(HTMLParser):
    """Elements as (tag, attributes, text inside), and a check that every element is closed."""

    VOID = frozenset({"meta", "link", "br", "img", "line", "rect", "circle", "path"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.found[self.open[-1]][0]}"

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes), []))
        if tag not in {"meta", "link", "br", "img"}:
            self.open.append(len(self.found) - 1)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        assert self.found[self.open.pop()][0] == tag

    def handle_data(self, data):
        for index in self.open:
            self.found[index][2].append(data)

    def all(self, tag):
        return [(attributes, "".join(text)) for name, attributes, text in self.found if name == tag]


@pytest.fixture(scope="module")
def html(report) -> str:
    return page(report)


@pytest.fixture(scope="module")
def tree(html) -> Tree:
    return Tree(html)


def test_the_page_needs_nothing_from_elsewhere(html, tree):
    assert not re.search(r"(?:https?:)?//[a-z]|@import|url\((?!#)", html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {tag for tag, _, _ in tree.found}
    assert not any(name in attributes for _, attributes, _ in tree.found for name in ("src", "href", "xlink:href"))


def test_what_a_step_says_is_text_and_never_markup(html, tree):
    assert ATTACK not in html and "&lt;script&gt;alert(1)" in html
    notes = [text for _, text in tree.all("li")]
    assert f"prune: {ATTACK}" in notes and 'clip: "quoted" & more' in notes
    assert f"quality lost: {ATTACK}" in notes


def test_the_page_can_be_read_without_seeing_it(tree):
    assert tree.all("html")[0][0]["lang"] == "en"
    assert tree.all("title")[0][1].startswith("compress")
    assert all(attributes.get("scope") in {"col", "row"} for attributes, _ in tree.all("th"))
    identifiers = [attributes["id"] for _, attributes, _ in tree.found if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    pictures = [attributes for attributes, _ in tree.all("svg") if "aria-hidden" not in attributes]
    assert len(pictures) == 3
    for picture in pictures:
        assert picture["role"] == "img"
        assert set(picture["aria-labelledby"].split()) <= set(identifiers)
    assert any("baseline teaches pruned." in text for _, text in tree.all("desc"))
    assert any("On the Pareto front" in text for _, text in tree.all("desc"))


def test_the_table_has_a_row_for_every_network_with_its_figures(report, tree):
    heads = [text for attributes, text in tree.all("th") if attributes["scope"] == "row"]
    assert [head.split("torch")[0].split("onnx,")[0] for head in heads][:2] == ["baseline", "baseline as onnx"]
    assert len(heads) == len(report.rows)
    rows = [text.strip() for _, text in tree.all("tr")]
    pruned = next(text for text in rows if text.startswith("pruned"))
    ratios = [wording.ratio(4), wording.ratio(2), f"{wording.MINUS}0.5 points"]
    for figure in (*ratios, "300,000 bytes", "0.5 ms", "98.5 %", "97.3 % to 99.3 %", "2 k not zero"):
        assert figure in pruned
    assert "disturbed" in next(attributes["title"] for attributes, text in tree.all("abbr") if text == "?")


def test_remarks_are_marked_by_what_they_mean(tree):
    tones = {text: attributes.get("class") for attributes, text in tree.all("li")}
    assert tones[f"quality lost: {ATTACK}"] == "bad"
    assert tones["zeros are stored dense"] == "plain"


def test_the_graph_shows_the_steps_and_dashes_what_teaches(tree):
    names = [text for attributes, text in tree.all("text") if attributes.get("class") == "name"]
    assert names == ["baseline", "pruned", "onnx"]
    edges = [text for attributes, text in tree.all("path") if attributes.get("class") == "edge teaches"]
    assert "baseline teaches pruned" in edges


def test_the_plots_are_against_bytes_and_against_time(report):
    size, time = plots(report)
    assert [mark.point.cost for mark in size.drawing.marks] == [1_200_000, 1_210_000, 300_000, 78_000]
    assert [mark.point.cost for mark in time.drawing.marks] == pytest.approx([1, 1 / 4, 1 / 2, 1 / 15])
    assert [mark.point.name for mark in time.drawing.marks if mark.on_front] == ["baseline as onnx", "onnx"]
    assert time.x_label == "time of one call at batch 1"


def test_a_metric_of_which_less_is_better_has_its_front_below(report):
    found = {
        name: row.metrics.quality.model_copy(update={"higher_is_better": False}) for name, row in report.steps.items()
    }
    rows = {
        name: row.model_copy(update={"metrics": row.metrics.model_copy(update={"quality": found[name]})})
        for name, row in report.steps.items()
    }
    errors = report.model_copy(update={"points": False, "steps": rows})
    size, _ = plots(errors)
    assert [mark.point.name for mark in size.drawing.marks if mark.on_front] == ["onnx"]
    assert size.y_label == "accuracy, lower is better"
    assert not any("%" in tick.text for tick in size.drawing.y_ticks)
    assert "98.5 %" not in page(errors)


def test_the_same_report_gives_the_same_page(report, html):
    assert page(report) == html


def test_a_report_without_a_headline_still_has_a_page(report):
    alone = report.model_copy(
        update={"headline": None, "order": ("baseline",), "steps": {"baseline": report.steps["baseline"]}}
    )
    assert "There is nothing beside baseline" in page(alone)
    Tree(page(alone))


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browse(path, folder, *options):
    return subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}",
            *options,
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_the_page_in_light_and_in_dark(html, tmp_path, dark):
    path, picture = tmp_path / "report.html", tmp_path / "page.png"
    path.write_text(html, encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browse(path, tmp_path, "--window-size=1280,2000", scheme, f"--screenshot={picture}")
    image = Image.open(picture).convert("L")
    corner = image.getpixel((2, 2))
    assert corner < 60 if dark else corner > 200
    shares = image.histogram()
    assert sum(share > 20 for share in shares) > 50
    assert max(shares) < 0.9 * sum(shares)


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [500, 1280])
def test_the_page_itself_never_scrolls_sideways(html, tmp_path, width):
    path = tmp_path / "report.html"
    probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    path.write_text(html.replace("</body>", probe), encoding="utf-8")
    shown = browse(path, tmp_path, f"--window-size={width},900", "--dump-dom").stdout
    needed, there = map(int, re.search(r"<title>(\d+) of (\d+)</title>", shown).groups())
    assert needed <= there
