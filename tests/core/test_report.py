"""The report: figures beside the dense network's, remarks, and what happens when something is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file, save_file

from compress_core.artifact import save
from compress_core.data import Columns, Splits, save_splits
from compress_core.errors import ArtifactError
from compress_core.files import to_json, write_manifest, write_text
from compress_core.measure import counts, quality, shipped_bytes
from compress_core.parts import DataSource, Exporter, Technique
from compress_core.recipe import ModelSpec, Recipe, Settings, Step
from compress_core.report import (
    MEASURED,
    Machine,
    Metrics,
    QualityFigures,
    Report,
    Row,
    Times,
    comparing,
    load_report,
    read_metrics,
    write_report,
)
from compress_core.report.comparing import compare, headline
from compress_core.report.remarks import quality_remark, remarks
from compress_core.report.rendering import table
from compress_core.report.wording import headline_words, signed
from compress_core.timing import Estimate, Timing
from compress_core.workspace import Workspace
from tests.support import MLP, Classification, digits

FACTORY = "tests.support:MLP"


class Plain(Technique):
    """Stands for any technique; the models of these tests are made by hand."""

    name = "plain"

    def apply(self, model, run):
        return model


class Nowhere(DataSource):
    name = "nowhere"

    def splits(self, seed):
        raise NotImplementedError


class Weights(Exporter):
    """The weights of an MLP in one file, and a runtime that multiplies them."""

    name = "weights"
    half: bool = False

    def export(self, model, folder, example):
        tensors = {name: tensor.half() if self.half else tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(tensors, folder / "weights.safetensors")

    def load(self, folder, threads):
        tensors = {name: tensor.float() for name, tensor in load_file(folder / "weights.safetensors").items()}
        layers = [(tensors[f"layers.{i}.weight"], tensors[f"layers.{i}.bias"]) for i in (1, 3, 5)]

        def run(image):
            value = image.flatten(1)
            for index, (weight, bias) in enumerate(layers):
                value = torch.nn.functional.linear(value if index == 0 else value.relu(), weight, bias)
            return value

        return run


def step(name, source=None, *, exporter=None, model=None, **fields):
    use = {"export": {"format": exporter.name}} if exporter else {"plain": {}}
    return Step(name, source, None, () if exporter else (Plain(),), exporter, model, use, **fields)


class Shop:
    """A workspace made by hand, as the stages would leave it."""

    def __init__(self, root: Path, reference: str = "baseline") -> None:
        self.workspace = Workspace(root)
        self.reference = reference
        self.steps: dict[str, Step] = {}
        full = digits()
        part = Columns({name: column[:100] for name, column in full.test.columns.items()})
        self.splits = Splits(part, part, part)
        save_splits(self.splits, self.workspace.artifact("data"))

    @property
    def recipe(self) -> Recipe:
        settings = Settings(seed=0, threads=1, device="cpu", precision="float32", reference=self.reference)
        return Recipe(
            Path("params.yaml"), settings, Nowhere(), ModelSpec(factory=FACTORY), Classification(), self.steps
        )

    def add(self, name, model, source=None, *, width=32, notes=()):
        spec = ModelSpec(factory=FACTORY, params={"width": width}) if source is None else None
        folder = self.workspace.artifact(name)
        save(model, folder, factory=FACTORY, params={"width": width})
        self.steps[name] = step(name, source, model=spec)
        self._measure(name, model, model, notes)

    def export(self, name, model, source, exporter):
        folder = self.workspace.artifact(name)
        folder.mkdir(parents=True)
        exporter.export(model, folder, None)
        write_manifest(folder, {"kind": "export"})
        self.steps[name] = step(name, source, exporter=exporter)
        self._measure(name, model, exporter.load(folder, 1), ())

    def _measure(self, name, model, runtime, notes):
        found = quality(runtime, [self.splits.test.take(torch.arange(100))], Classification())
        parts = counts(model, ((self.splits.test.column("image")[:1],), {}))
        content = {
            "quality": found.to_dict(),
            "bytes": shipped_bytes(self.workspace.artifact(name)),
            "parameters": parts.parameters,
            "nonzero": parts.nonzero,
            "macs": parts.macs,
            "notes": list(notes),
        }
        write_text(self.workspace.metrics(name), to_json(content))

    def compare(self) -> Report:
        return compare(self.recipe, self.workspace, seconds=0.02)


@pytest.fixture(scope="module")
def trained() -> MLP:
    torch.manual_seed(0)
    model = MLP()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    data = digits().train
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data.column("image")), data.column("label")).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def untimed(monkeypatch):
    """Every call takes a millisecond, so that a test that is not about time takes none."""

    def measured(calls, opponents, **options):
        return Timing({name: [0.001] * 7 for name in calls}, disturbed=False, attempts=1)

    monkeypatch.setattr(comparing, "measure", measured)


@pytest.fixture(scope="module")
def shop(tmp_path_factory, trained) -> Shop:
    shop = Shop(tmp_path_factory.mktemp("shop"))
    shop.add("baseline", trained, notes=["tune: 40 epochs"])
    shop.add("same", trained, "baseline", notes=["plain: looked at 3 layers"])
    torch.manual_seed(1)
    shop.add("broken", MLP(8), width=8)
    shop.export("file", trained, "same", Weights())
    shop.export("half", trained, "same", Weights(half=True))
    return shop


@pytest.fixture(scope="module")
def report(shop) -> Report:
    return shop.compare()


def test_every_step_is_there_and_the_dense_network_in_each_format_after_the_reference(report):
    assert report.order == (
        "baseline",
        "baseline as weights",
        "baseline as weights (half: True)",
        "same",
        "broken",
        "file",
        "half",
    )
    assert [row.name for row in report.rows if not row.is_step] == [*report.order[1:3]]
    assert report.steps["file"].opponent == "baseline as weights"
    assert report.steps["half"].opponent == "baseline as weights (half: True)"
    assert {report.steps[name].opponent for name in ("baseline", "same", "broken")} == {"baseline"}
    assert {report.steps[name].format for name in report.order} == {"torch", "weights"}


def test_bytes_are_compared_in_the_same_format(report, shop):
    dense = report.steps["baseline as weights"].metrics.bytes
    assert dense == report.steps["file"].metrics.bytes
    assert report.steps["file"].smaller == 1
    broken = shipped_bytes(shop.workspace.artifact("broken"))
    assert report.steps["broken"].smaller == shipped_bytes(shop.workspace.artifact("baseline")) / broken
    assert report.steps["half"].metrics.bytes < 0.6 * dense


def test_the_export_made_for_comparison_is_measured_like_a_step(report):
    made, reference = report.steps["baseline as weights"], report.steps["baseline"]
    assert made.metrics.quality == reference.metrics.quality
    assert made.metrics.macs == reference.metrics.macs == 64 * 32 + 32 * 32 + 32 * 10
    assert made.metrics.notes == () and made.input == "baseline"
    assert made.use == {"export": {"format": "weights"}}


def test_quality_is_compared_in_points(report):
    broken, reference = report.steps["broken"], report.steps["baseline"]
    expected = 100 * (broken.metrics.quality.value - reference.metrics.quality.value)
    assert broken.difference == pytest.approx(expected) and broken.difference < -50
    assert report.points


def test_every_network_is_timed_at_both_batch_sizes_on_the_recipes_threads(report):
    for row in report.rows:
        assert [times.batch for times in row.latency] == [1, 64]
        assert {times.threads for times in row.latency} == {1}
        for times in row.latency:
            assert times.opponent == row.opponent
            assert 0 < times.milliseconds.low <= times.milliseconds.value <= times.milliseconds.high
    for times in report.steps["baseline"].latency:
        assert times.speedup == times.speedup_to_eager == Estimate(1, 1, 1)
    assert report.steps["baseline as weights"].latency[0].speedup == Estimate(1, 1, 1)


def test_ratios_come_from_rounds_that_were_timed_together(shop, monkeypatch):
    names = ["baseline", "baseline as weights", "baseline as weights (half: True)", "same", "broken", "file", "half"]
    seconds = dict(zip(names, (0.008, 0.002, 0.004, 0.008, 0.016, 0.001, 0.004), strict=True))
    asked = []

    def measured(calls, opponents, **options):
        asked.append((list(calls), set(opponents)))
        for call in calls.values():
            call()
        return Timing({name: [seconds[name]] * 7 for name in calls}, disturbed=False, attempts=1)

    monkeypatch.setattr(comparing, "measure", measured)
    report = shop.compare()
    assert asked == [(names, {"baseline", names[1], names[2]})] * 2
    file, half, broken = (report.steps[name].latency[0] for name in ("file", "half", "broken"))
    assert (file.speedup.value, file.speedup_to_best.value, file.speedup_to_eager.value) == (2, 2, 8)
    assert (half.speedup.value, half.speedup_to_best.value, half.speedup_to_eager.value) == (1, 0.5, 2)
    assert file.best == half.best == "baseline as weights"
    assert broken.speedup.value == 0.5 and file.milliseconds.value == 1
    assert (
        "no faster than the reference, but slower: 0.50 times as fast at batch 1" in report.steps["broken"].remarks[0]
    )
    assert any("no faster than the reference at batch 1 and 64" in said for said in report.steps["half"].remarks)


def test_a_step_that_leaves_every_tensor_alone_changes_nothing(report):
    assert "changes nothing: every tensor is that of 'baseline'" in report.steps["same"].remarks
    assert not any("changes nothing" in said for said in report.steps["file"].remarks)


def test_remarks_name_a_loss_and_a_file_that_is_no_smaller(report):
    assert any(said.startswith("quality lost: ") for said in report.steps["broken"].remarks)
    size = report.steps["file"].metrics.bytes
    assert f"no smaller than the reference: {size:,} bytes against {size:,}" in report.steps["file"].remarks
    assert report.headline == "half"


def test_a_dense_export_in_the_recipe_is_the_opponent_and_none_is_made(tmp_path, trained, untimed):
    shop = Shop(tmp_path)
    shop.add("baseline", trained)
    shop.export("dense-file", trained, "baseline", Weights())
    torch.manual_seed(1)
    shop.add("student", MLP(8), width=8)
    shop.export("student-file", MLP(8), "student", Weights())
    report = shop.compare()
    assert report.order == ("baseline", "dense-file", "student", "student-file")
    assert report.steps["student-file"].opponent == "dense-file"
    assert report.steps["dense-file"].is_dense


def test_a_reference_that_is_an_export_stands_for_the_network_in_it(tmp_path, trained, untimed):
    shop = Shop(tmp_path, reference="dense-file")
    shop.add("first", trained)
    shop.export("dense-file", trained, "first", Weights())
    report = shop.compare()
    assert report.reference == "first" and report.steps["dense-file"].opponent == "dense-file"
    assert report.headline is None


def test_a_batch_is_never_larger_than_the_test_split(tmp_path, trained, untimed):
    shop = Shop(tmp_path)
    few = Columns({name: column[:5] for name, column in digits().test.columns.items()})
    save_splits(Splits(few, few, few), shop.workspace.artifact("data"))
    shop.add("baseline", trained)
    assert [times.batch for times in shop.compare().steps["baseline"].latency] == [1, 5]


def test_the_written_report_is_read_back_as_it_was(report, tmp_path):
    workspace = Workspace(tmp_path)
    write_report(report, workspace)
    assert load_report(workspace) == report
    content = json.loads((workspace.report / "report.json").read_text())
    assert list(content) == sorted(content)
    assert content["steps"]["half"]["metrics"]["bytes"] == report.steps["half"].metrics.bytes
    assert content["machine"]["threads"] == 1 and "torch" in content["machine"]["versions"]
    assert sorted(path.name for path in workspace.report.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "it is missing"),
        ("{", "it is damaged"),
        ('{"reference": "baseline"}', "it is damaged: points: Field required"),
    ],
)
def test_a_report_that_cannot_be_read_names_the_file_and_the_mend(tmp_path, text, what):
    workspace = Workspace(tmp_path)
    if text is not None:
        write_text(workspace.report / "report.json", text)
    with pytest.raises(ArtifactError) as caught:
        load_report(workspace)
    assert what in caught.value.what
    assert caught.value.where == str(workspace.report / "report.json")
    assert caught.value.mend == "run `dvc repro`"


def test_a_step_without_metrics_is_named(tmp_path, trained, untimed):
    shop = Shop(tmp_path)
    shop.add("baseline", trained)
    shop.workspace.metrics("baseline").unlink()
    with pytest.raises(ArtifactError, match="it is missing") as caught:
        shop.compare()
    assert "baseline.json" in caught.value.where


def test_an_altered_export_is_refused(tmp_path, trained, untimed):
    shop = Shop(tmp_path)
    shop.add("baseline", trained)
    shop.export("file", trained, "baseline", Weights())
    path = shop.workspace.artifact("file") / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="altered"):
        shop.compare()


def test_metrics_may_hold_more_than_the_report_reads(tmp_path):
    path = tmp_path / "metrics.json"
    figures = row().metrics.model_dump(mode="json")
    path.write_text(json.dumps({**figures, "energy": 3}))
    assert read_metrics(path) == row().metrics
    figures["quality"]["also"] = {"top_3": 0.99}
    path.write_text(json.dumps(figures))
    assert read_metrics(path).quality.also == {"top_3": 0.99}


def test_the_stage_ends_with_status_2_and_no_traceback_where_there_is_no_recipe(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "compress_core.report"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no recipe" in done.stderr and "Traceback" not in done.stderr


def test_reading_and_showing_a_report_needs_no_torch():
    modules = "compress_core.report.remarks, compress_core.report.rendering, compress_core.report"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Remarks, as functions of the figures alone.


def figures(value=0.97, low=0.95, high=0.985, **fields) -> QualityFigures:
    return QualityFigures(name=fields.pop("name", "accuracy"), value=value, low=low, high=high, examples=450, **fields)


def times(speedup=(2.0, 1.9, 2.1), batch=1, *, best=None, disturbed=False) -> Times:
    found = Estimate(*speedup)
    return Times(
        batch=batch,
        threads=1,
        opponent="dense",
        best="fastest",
        milliseconds=Estimate(1, 1, 1),
        speedup=found,
        speedup_to_best=Estimate(*(best or speedup)),
        speedup_to_eager=found,
        disturbed=disturbed,
    )


def row(name="small", *, opponent="dense", size=500, latency=(), quality=None, **fields) -> Row:
    metrics = {"parameters": 100, "nonzero": 100, "macs": 9, "notes": ()} | fields.pop("metrics", {})
    return Row(
        name=name,
        kind=fields.pop("kind", "model"),
        format="torch",
        input="dense",
        teacher=None,
        use={"plain": {}},
        opponent=opponent,
        metrics=Metrics(quality=quality or figures(), bytes=size, **metrics),
        smaller=1000 / size,
        difference=0.0,
        latency=latency,
        **fields,
    )


DENSE = row("dense", size=1000)


def said_of(found: Row, **options) -> tuple[str, ...]:
    return remarks(found, DENSE, DENSE, points=True, **options)


@pytest.mark.parametrize(
    ("speedup", "remark"),
    [
        ((2.0, 1.9, 2.1), None),
        ((1.05, 1.001, 1.1), None),
        ((1.05, 1.0, 1.1), "no faster than the reference at batch 1"),
        ((1.02, 0.97, 1.08), "no faster than the reference at batch 1"),
        ((0.98, 0.9, 1.0), "no faster than the reference at batch 1"),
        ((0.52, 0.5, 0.6), "no faster than the reference, but slower: 0.52 times as fast at batch 1"),
    ],
)
def test_only_an_interval_above_one_is_faster(speedup, remark):
    found = [said for said in said_of(row(latency=(times(speedup),))) if "quality" not in said]
    assert found == ([] if remark is None else [remark])


def test_each_batch_size_is_judged_by_itself():
    latency = (times((1.0, 0.9, 1.1)), times((0.5, 0.4, 0.6), 64))
    assert said_of(row(latency=latency))[:2] == (
        "no faster than the reference, but slower: 0.50 times as fast at batch 64",
        "no faster than the reference at batch 1",
    )


def test_a_file_that_beats_only_its_own_runtime_is_told_so():
    latency = (times((2.0, 1.9, 2.1), best=(0.5, 0.4, 0.6)),)
    assert (
        "faster than the dense network in its own runtime, but slower than fastest: 0.50 times as fast at batch 1"
        in said_of(row(latency=latency, kind="export"))
    )
    assert not any("fastest" in said for said in said_of(row(latency=latency)))


@pytest.mark.parametrize(("size", "said"), [(999, False), (1000, True), (1200, True)])
def test_equal_bytes_are_no_smaller(size, said):
    expected = f"no smaller than the reference: {size:,} bytes against 1,000"
    assert (expected in said_of(row(size=size))) is said


def test_the_reference_is_not_compared_with_itself():
    assert remarks(DENSE, DENSE, DENSE, points=True) == ()


def test_zeros_are_said_to_be_stored_dense():
    assert "zeros are stored dense: 90 % of the weights are zero and cost their full bytes" in said_of(
        row(metrics={"parameters": 1000, "nonzero": 100})
    )
    assert not any("dense" in said for said in said_of(row(metrics={"parameters": 1000, "nonzero": 995})))


def test_a_network_without_parameters_has_no_zeros():
    assert row(metrics={"parameters": 0, "nonzero": 0}).metrics.zeros == 0


def test_a_technique_that_changed_nothing_is_named():
    notes = {"notes": ("factorize: no layer is worth it, nothing changed", "clip: 30 of 100 weights went")}
    found = said_of(row(metrics=notes))
    assert "factorize changes nothing" in found and not any("clip" in said for said in found)


def test_a_disturbed_timing_is_never_passed_over():
    latency = (times(), times(batch=64, disturbed=True))
    assert any(said.startswith("timing disturbed at batch 64") for said in said_of(row(latency=latency)))


@pytest.mark.parametrize(
    ("own", "higher", "expected"),
    [
        (0.96, True, "quality within the interval of the reference"),
        (0.95, True, "quality within the interval of the reference"),
        (0.94, True, "quality lost: 3.0 points worse than the reference, outside its interval"),
        (0.99, True, "quality better than the reference: 2.0 points beyond it, outside its interval"),
        (0.94, False, "quality better than the reference: 3.0 points beyond it, outside its interval"),
        (0.99, False, "quality lost: 2.0 points worse than the reference, outside its interval"),
    ],
)
def test_a_loss_is_one_that_leaves_the_references_interval(own, higher, expected):
    reference = figures(higher_is_better=higher)
    assert quality_remark(figures(own, higher_is_better=higher), reference, points=True) == expected


def test_a_metric_with_a_unit_is_not_counted_in_points():
    reference = figures(3.0, 2.9, 3.1, name="squared error", higher_is_better=False)
    assert quality_remark(figures(4.5, name="squared error", higher_is_better=False), reference, points=False) == (
        "quality lost: 1.5 of squared error worse than the reference, outside its interval"
    )
    assert signed(-1.5, points=False) == "\N{MINUS SIGN}1.5"
    assert signed(-0.04, points=True) == "0.0 points"


def test_of_steps_that_all_lose_quality_equally_the_smallest_is_named():
    lost = [row(name, size=size, quality=figures(0.5)) for name, size in (("a", 400), ("b", 300), ("c", 350))]
    assert headline([DENSE, *lost, row("d", size=100, quality=figures(0.4))], "dense") == "b"


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 100)), min_size=1, max_size=8))
def test_the_headline_is_the_smallest_that_keeps_the_quality(pairs):
    rows = [row(f"step{index}", size=size, quality=figures(share / 100)) for index, (size, share) in enumerate(pairs)]
    chosen = next(found for found in rows if found.name == headline([DENSE, *rows], "dense"))
    keeping = [found for found in rows if found.metrics.quality.value >= 0.95]
    if keeping:
        assert chosen in keeping and chosen.metrics.bytes == min(found.metrics.bytes for found in keeping)
    else:
        assert chosen.metrics.quality.value == max(found.metrics.quality.value for found in rows)


def made_report(*rows: Row, chosen: str | None = "small") -> Report:
    every = {found.name: found for found in (DENSE, *rows)}
    return Report(
        reference="dense",
        points=True,
        headline=chosen,
        order=tuple(every),
        steps=every,
        machine=Machine(processor="P", cores=2, threads=1, device="cpu", system="S", versions={}),
        measured=MEASURED,
    )


def test_the_headline_is_against_the_best_dense_runtime_first_and_eager_second():
    found = headline_words(made_report(row(latency=(times((8.0, 7.9, 8.1), best=(2.5, 2.4, 2.6)),))))
    assert "small is 2.0 times smaller than dense" in found
    assert found.index("2.5 times as fast as fastest") < found.index("8.0 times as fast as eager torch")


def test_the_headline_does_not_claim_a_speed_that_was_not_shown():
    latency = (times((1.1, 0.9, 1.3), disturbed=True),)
    found = headline_words(made_report(row(size=1100, latency=latency)))
    assert "no smaller than dense" in found and "no faster than fastest" in found
    assert "disturbed" in found


def test_what_holds_of_every_row_is_said_once():
    latency = (times(disturbed=True),)
    said = "timing disturbed at batch 1: other work on the machine, do not trust these times"
    rows = [row(name, latency=latency, remarks=(said, f"only {name}")) for name in ("small", "smaller")]
    report = made_report(*rows)
    text = shown(report.model_copy(update={"steps": {**report.steps, "dense": rows[0]}}))
    assert text.count("timing disturbed") == 1 and "all timing disturbed" in text
    assert "only small" in text and "only smaller" in text


def shown(report: Report, width: int = 80) -> str:
    console = Console(width=width, record=True, file=StringIO())
    console.print(table(report))
    return " ".join(console.export_text().split())


def test_the_table_holds_ratios_times_and_remarks_within_80_columns(report):
    console = Console(width=80, record=True, file=StringIO())
    console.print(table(report))
    lines = console.export_text().splitlines()
    text = " ".join(" ".join(lines).split())
    assert all(len(line) <= 80 for line in lines) and "…" not in text
    for name in ("baseline as weights", "broken", "half"):
        assert name in text
    assert "changes nothing: every tensor is that of 'baseline'" in text
    assert "Not measured: energy and peak memory." in text
    assert f"{report.steps['half'].smaller:.2f}\N{MULTIPLICATION SIGN}" in text
