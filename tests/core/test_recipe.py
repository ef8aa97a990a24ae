"""Every mistake in a recipe is told with its file, line, step, field and mend, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress_core.errors import RecipeError
from compress_core.parts import Change
from compress_core.recipe import Recipe, read_recipe
from tests.core.fakes import RECIPE, Cut, Learn, fake_catalog, point


def read(folder: Path, text: str, *more) -> Recipe:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, fake_catalog(*more))


def refused(folder: Path, text: str, *more) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        read(folder, text, *more)
    assert caught.value.where.startswith(str(folder / "params.yaml"))
    return caught.value


def changed(old: str, new: str) -> str:
    assert RECIPE.count(old) == 1, f"{old!r} must stand once in the recipe"
    return RECIPE.replace(old, new)


def line_of(text: str, part: str) -> int:
    """The line, from 1, of the only place where a part stands."""
    assert text.count(part) == 1
    return text[: text.index(part)].count("\n") + 1


def test_a_recipe_becomes_steps_with_their_techniques_and_defaults(tmp_path):
    recipe = read(tmp_path, RECIPE)
    assert list(recipe.steps) == ["baseline", "cut"]
    assert recipe.steps["baseline"].techniques == (Learn(epochs=2),)
    assert recipe.steps["cut"].techniques == (Cut(share=0.25, scope="tensor"),)
    assert recipe.steps["cut"].needs == ("baseline",)
    assert (recipe.seed, recipe.settings.threads, recipe.settings.precision) == (0, 2, "float32")
    assert recipe.reference is recipe.steps["baseline"]
    assert [step.name for step in recipe.lineage("cut")] == ["cut", "baseline"]


MISTAKES = {
    # name: (old, new, what, field, a part that stands in the reported line, a part of the mend)
    "unknown technique": ("cut: {share: 0.25}", "cot: {share: 0.25}", "'cot'", "cut.use.cot", "cot: {", "'cut'"),
    "unknown parameter": ("share: 0.25", "shore: 0.25", "'shore'", "cut.use.cut.shore", "shore", "'share'"),
    "value out of range": ("share: 0.25", "share: 1.5", "less than 1", "cut.use.cut.share", "1.5", None),
    "value not a number": ("share: 0.25", "share: .nan", "not nan", "cut.use.cut.share", ".nan", None),
    "wrong type": ("epochs: 2", "epochs: many", "not 'many'", "baseline.use.learn.epochs", "many", None),
    "truth for a count": ("epochs: 2", "epochs: true", "not True", "baseline.use.learn.epochs", "epochs: t", "learn`"),
    "text for a count": ("epochs: 2", 'epochs: "2"', "not '2'", "baseline.use.learn.epochs", 'epochs: "', "learn`"),
    "truth for a number": ("share: 0.25", "share: true", "not True", "cut.use.cut.share", "share: t", "cut`"),
    "text for a number": ("share: 0.25", "share: '0.25'", "not '0.25'", "cut.use.cut.share", "share: '", "cut`"),
    "truth for a setting": ("seed: 0", "seed: true", "not True", "seed", "seed: true", None),
    "text for a setting": ("threads: 2", "threads: '2'", "not '2'", "threads", "threads: '", None),
    "number for a text": ("device: cpu", "device: 0", "valid string, not 0", "device", "device: 0", "quote it"),
    "number for a step": ("input: baseline", "input: 2", "valid string, not 2", "cut.input", "input: 2", "quote it"),
    "number as a step": ("  cut:\n", "  2:\n", "2 cannot name a step", "pipeline.2", "  2:\n", "quote it"),
    "list for a data source": ("fake-digits", "[a]", "['a'] names no data source", "data.source", "[a]", "fake-digits"),
    "mapping for a task": ("test-classification", "{a: 1}", "names no task", "task.name", "{a: 1}", "test-class"),
    "list for a format": (
        "cut: {share: 0.25}",
        "export: {format: [a]}",
        "['a'] names no export format",
        "cut.use.export.format",
        "format: [a]",
        "choose one: text",
    ),
    "fraction for a count": ("epochs: 2", "epochs: 2.5", "2.5", "baseline.use.learn.epochs", "2.5", None),
    "unknown input": ("input: baseline", "input: basline", "'basline'", "cut.input", "basline", "'baseline'"),
    "unknown teacher": (
        "input: baseline\n    teacher: none",
        "input: baseline\n    teacher: nobody",
        "'nobody'",
        "cut.teacher",
        "nobody",
        "known: baseline",
    ),
    "circle": ("input: none", "input: cut", "circle", "pipeline.", None, None),
    "bad step name": ("  cut:\n", "  Cut it/:\n", "'Cut it/'", "pipeline.Cut it/", "Cut it/", "a-z"),
    "empty use": ("    use:\n      cut: {share: 0.25}\n", "    use: {}\n", "at least 1", "cut.use", "use: {}", None),
    "missing teacher": (
        "input: baseline\n    teacher: none\n",
        "input: baseline\n",
        "'teacher' is missing",
        "cut",
        "  cut:\n",
        "teacher:",
    ),
    "step no mapping": (
        "  cut:\n    input: baseline\n    teacher: none\n    use:\n      cut: {share: 0.25}\n",
        "  cut: 3\n",
        "must be a mapping",
        "pipeline.cut",
        "cut: 3",
        "input:",
    ),
    "own model with an input": (
        "input: baseline\n",
        "input: baseline\n    model: {factory: 'a:b'}\n",
        "starts afresh",
        "cut.model",
        "model: {",
        "input: none",
    ),
    "factory no import string": ("tests.support:MLP", "tests.support.MLP", "pattern", "model.factory", "MLP", None),
    "unknown section": (
        "reference: baseline",
        "reference: baseline\npipelin: {}",
        "'pipelin'",
        "",
        "pipelin:",
        "'pipeline'",
    ),
    "negative seed": ("seed: 0", "seed: -1", "0", "seed", "seed: -1", None),
    "unknown reference": ("reference: baseline", "reference: base", "'base'", "reference", "base\n", "'baseline'"),
    "unknown precision": (
        "float32",
        "float8",
        "float8",
        "precision",
        "float8",
        None,
    ),
    "unknown data source": ("fake-digits", "fake-digit", "'fake-digit'", "data.source", "fake-digit", "'fake-digits'"),
    "no data source named": ("source: fake-digits", "read: []", "'source' is missing", "data", "data:", "fake-digits"),
    "unknown task": ("test-classification", "tests", "'tests'", "task.name", "name: tests", "test-classification"),
    "unknown format": ("cut: {share: 0.25}", "export: {format: txt}", "'txt'", "use.export.format", "txt", "'text'"),
    "export with company": (
        "cut: {share: 0.25}",
        "cut: {}\n      export: {format: text}",
        "shares its step",
        "cut.use",
        None,
        "a step of its own",
    ),
    "teacher missing": (
        "cut: {share: 0.25}",
        "mimic: {}\n      learn: {}",
        "'mimic' needs a teacher",
        "cut.use",
        None,
        "teacher:",
    ),
    "no epochs": (
        "teacher: none\n    use:\n      cut: {share: 0.25}",
        "teacher: baseline\n    use:\n      mimic: {}",
        "does nothing without training",
        "cut.use",
        None,
        "tune",
    ),
    "two owners of the numbers": (
        "cut: {share: 0.25}",
        "integers: {}\n      codes: {}",
        "'codes' and 'integers' both decide",
        "cut.use",
        None,
        "keep one",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_line_field_and_mend(tmp_path, mistake):
    old, new, what, field, at, mend = MISTAKES[mistake]
    text = changed(old, new)
    error = refused(tmp_path, text)
    assert what in error.what
    assert field in error.where
    if at is not None:
        assert f"line {line_of(text, at)}," in error.where
    if mend is not None:
        assert mend in error.mend


PARAMS = "tests.support:MLP\n  params:\n    "


@pytest.mark.parametrize(
    ("params", "place", "what"),
    [
        ("a: .inf", "a", "must be finite, not inf"),
        ("a: {b: [1, -.inf]}", "a.b.1", "must be finite, not -inf"),
        ("a: .nan", "a", "must be finite, not nan"),
        ("a: 2026-01-01", "a", "2026-01-01 is neither text nor a number, but a date"),
        ("a: [2026-01-01T10:00:00]", "a.0", "is neither text nor a number"),
        ("a: !!binary aGVsbG8=", "a", "is neither text nor a number"),
        ("a: !unit 3", "a", "is neither text nor a number"),
    ],
)
def test_what_no_manifest_can_hold_is_refused_as_an_argument_of_the_network(tmp_path, params, place, what):
    error = refused(tmp_path, changed("tests.support:MLP", PARAMS + params))
    assert what in error.what
    assert error.where.endswith(f"line 11, model.params.{place}")
    assert error.mend


def test_plain_arguments_of_the_network_come_as_they_are_written(tmp_path):
    written = "{a: &yes true, b: *yes, c: [1, 2.5, 'x'], d: {e: null}, f: 12345678901234567890123}"
    params = read(tmp_path, changed("tests.support:MLP", PARAMS.rstrip() + " " + written)).model.params
    assert repr(params) == repr(
        {"a": True, "b": True, "c": [1, 2.5, "x"], "d": {"e": None}, "f": 12345678901234567890123}
    )


MERGED = RECIPE.replace("  baseline:\n", "  baseline: &first\n")


def test_a_step_may_take_fields_from_another_with_a_merge_key(tmp_path):
    recipe = read(tmp_path, MERGED + "  again:\n    <<: *first\n    input: baseline\n")
    assert recipe.steps["again"].techniques == recipe.steps["baseline"].techniques
    assert recipe.steps["again"].input == "baseline"


TOO_MUCH = RECIPE.replace("cut: {share: 0.25}", "cut: {<<: {share: 2}}")
UNKNOWN = MERGED + "  again:\n    <<: *first\n    teacher: nobody\n"
NO_NAME = RECIPE.replace("  source: fake-digits", "  <<: {source: [a]}")


@pytest.mark.parametrize(
    ("text", "at", "field"),
    [
        (TOO_MUCH, "cut: {<<", "pipeline.cut.use.cut.share"),
        (UNKNOWN, "teacher: nobody", "pipeline.again.teacher"),
        (NO_NAME, "data:", "data.source"),
    ],
)
def test_a_mistake_beside_or_below_a_merge_key_is_told_at_the_nearest_line(tmp_path, text, at, field):
    assert refused(tmp_path, text).where.endswith(f", line {line_of(text, at)}, {field}")


def test_paths_and_numbers_of_a_part_may_be_written_as_yaml_has_them(tmp_path):
    text = changed("source: fake-digits", "source: fake-digits\n  read: [a.npz]").replace("epochs: 2", "rate: 1")
    recipe = read(tmp_path, text)
    assert recipe.data.files() == (Path("a.npz"),)
    assert recipe.steps["baseline"].techniques[0].rate == 1.0


@pytest.mark.parametrize("name", ["none", "data", "lock", "report", "-a", "ä", "a.b", "a b"])
def test_a_name_that_is_reserved_or_no_file_name_cannot_name_a_step(tmp_path, name):
    error = refused(tmp_path, changed("  cut:\n", f"  {name!r}:\n"))
    assert error.what == f"{name!r} cannot name a step"
    assert "report" in error.mend


def test_a_number_cannot_name_a_step(tmp_path):
    assert "12 cannot name a step" in refused(tmp_path, changed("  cut:\n", "  12:\n")).what


@pytest.mark.parametrize("section", ["data", "model", "task", "pipeline"])
def test_a_missing_section_is_named(tmp_path, section):
    lines = RECIPE.splitlines(keepends=True)
    start = lines.index(f"{section}:\n")
    end = next((i for i in range(start + 1, len(lines)) if not lines[i].startswith(" ")), len(lines))
    assert f"{section!r} is missing" in refused(tmp_path, "".join(lines[:start] + lines[end:])).what


@pytest.mark.parametrize("line", ["reference: baseline", "seed: 0", "threads: 2", "device: cpu", "precision: float32"])
def test_a_missing_setting_is_named(tmp_path, line):
    assert f"{line.partition(':')[0]!r} is missing" in refused(tmp_path, changed(f"{line}\n", "")).what


@pytest.mark.parametrize("pipeline", ["pipeline: {}\n", "pipeline:\n", "pipeline: []\n"])
def test_an_empty_pipeline_is_an_error(tmp_path, pipeline):
    text = RECIPE[: RECIPE.index("pipeline:")] + pipeline
    error = refused(tmp_path, text)
    assert "pipeline" in error.what
    assert f"line {line_of(text, 'pipeline:')}" in error.where


@pytest.mark.parametrize(
    ("text", "line"), [("a: [1, 2\n", None), ("a: 1\nb:\t- 2\n", 2), ("a: 1\na: 2\n", 2), ("a: 'x\n", None)]
)
def test_what_is_no_yaml_is_told_with_its_line(tmp_path, text, line):
    error = refused(tmp_path, text)
    assert "no YAML" in error.what
    assert "line" in error.where
    if line is not None:
        assert f"line {line}" in error.where


@pytest.mark.parametrize("text", ["", "just words\n", "- a\n- b\n"])
def test_a_recipe_must_be_a_mapping(tmp_path, text):
    assert "must be a mapping" in refused(tmp_path, text).what


def test_bytes_that_are_no_text_are_told(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeError, match="no YAML"):
        read_recipe(tmp_path / "params.yaml", fake_catalog())


def test_a_missing_recipe_is_told_with_the_mend(tmp_path):
    with pytest.raises(RecipeError, match="there is no recipe") as caught:
        read_recipe(tmp_path / "params.yaml", fake_catalog())
    assert "params.yaml" in caught.value.mend


@pytest.mark.parametrize(("written", "read_as"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.0e-4", 1e-4), ("2", 2.0)])
def test_a_number_with_an_exponent_is_a_number(tmp_path, written, read_as):
    recipe = read(tmp_path, changed("epochs: 2", f"rate: {written}"))
    assert recipe.steps["baseline"].techniques[0].rate == read_as
    params = read(tmp_path, changed("tests.support:MLP", f"tests.support:MLP\n  params: {{a: {written}}}")).model.params
    assert params == {"a": read_as}
    assert type(params["a"]) in {int, float}


def test_a_technique_without_parameters_may_be_left_empty(tmp_path):
    assert read(tmp_path, changed("cut: {share: 0.25}", "cut:")).steps["cut"].techniques == (Cut(),)


CHAIN = changed("cut: {share: 0.25}", "integers: {}") + (
    "  after:\n    input: cut\n    teacher: none\n    use:\n      {use}\n"
)


@pytest.mark.parametrize("use", ["cut: {}", "learn: {}", "integers: {}", "shape: {}"])
def test_nothing_changes_a_network_whose_numbers_were_changed(tmp_path, use):
    error = refused(tmp_path, CHAIN.replace("{use}", use))
    assert "'cut' has already changed" in error.what
    assert "pipeline.after.use" in error.where
    assert error.mend == "move it before 'cut', or into the same step"


def test_a_network_that_holds_a_teacher_with_changed_numbers_is_not_changed_either(tmp_path):
    joined = CHAIN.replace("    input: cut\n    teacher: none", "    input: baseline\n    teacher: cut")
    after = "  late:\n    input: after\n    teacher: none\n    use:\n      cut: {}\n"
    error = refused(tmp_path, joined.replace("{use}", "join: {}") + after)
    assert "'cut' has already changed" in error.what
    assert "pipeline.late.use" in error.where


def test_numbers_may_be_changed_again_after_they_were_reopened(tmp_path):
    again = "  again:\n    input: after\n    teacher: none\n    use:\n      integers: {}\n"
    recipe = read(tmp_path, CHAIN.replace("{use}", "reopen: {}") + again)
    assert Change.NUMBERS in recipe.steps["again"].techniques[0].changes


def test_a_network_with_changed_numbers_may_be_exported_and_may_teach(tmp_path):
    recipe = read(tmp_path, CHAIN.replace("{use}", "export: {format: text}"))
    assert recipe.steps["after"].exporter is not None
    assert recipe.steps["after"].techniques == ()
    teaching = CHAIN.replace("{use}", "learn: {}\n      mimic: {}").replace(
        "  after:\n    input: cut\n    teacher: none", "  after:\n    input: none\n    teacher: cut"
    )
    assert read(tmp_path, teaching).steps["after"].teacher == "cut"


@pytest.mark.parametrize("role", ["input: onnx\n    teacher: none", "input: cut\n    teacher: onnx"])
def test_an_export_ends_its_chain(tmp_path, role):
    text = RECIPE + (
        "  onnx:\n    input: cut\n    teacher: none\n    use:\n      export: {format: text}\n"
        f"  after:\n    {role}\n    use:\n      cut: {{}}\n"
    )
    error = refused(tmp_path, text)
    assert "'onnx' is an export" in error.what
    assert error.mend == "name 'cut', its own input"


def test_an_export_needs_a_network(tmp_path):
    error = refused(
        tmp_path, RECIPE + "  onnx:\n    input: none\n    teacher: none\n    use:\n      export: {format: text}\n"
    )
    assert "an export needs a network" in error.what


def test_a_step_that_feeds_itself_is_a_circle(tmp_path):
    assert "cut -> cut" in refused(tmp_path, changed("input: baseline", "input: cut")).what


def test_steps_are_put_in_an_order_in_which_they_can_run(tmp_path):
    head, steps = RECIPE.split("pipeline:\n")
    first, second = steps.split("  cut:\n")
    recipe = read(tmp_path, head + "pipeline:\n  cut:\n" + second + first)
    assert list(recipe.steps) == ["baseline", "cut"]


def test_the_written_order_of_techniques_means_nothing(tmp_path):
    uses = ["learn: {}", "cut: {}", "shape: {}", "integers: {}"]
    found = [
        [
            technique.name
            for technique in read(tmp_path, changed("cut: {share: 0.25}", "\n      ".join(order)))
            .steps["cut"]
            .techniques
        ]
        for order in (uses, uses[::-1])
    ]
    assert found[0] == found[1] == ["shape", "cut", "integers", "learn"]


def test_a_step_of_its_own_model_is_the_model_of_all_that_grows_from_it(tmp_path):
    text = RECIPE + (
        "  student:\n    input: none\n    teacher: cut\n    model: {factory: 'tests.support:ConvNet'}\n"
        "    use:\n      learn: {}\n      mimic: {}\n"
        "  smaller:\n    input: student\n    teacher: none\n    use:\n      cut: {}\n"
    )
    recipe = read(tmp_path, text)
    assert recipe.model_of("smaller").factory == recipe.model_of("student").factory == "tests.support:ConvNet"
    assert recipe.model_of("cut").factory == "tests.support:MLP"
    with pytest.raises(RecipeError, match="no step 'smalle'") as caught:
        recipe.step("smalle")
    assert "'smaller'" in caught.value.mend


def test_a_broken_plugin_is_named_only_where_an_unknown_name_might_be_its_own(tmp_path, monkeypatch):
    (tmp_path / "broken_by_design.py").write_text("raise OSError('no library')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = point("broken", "broken_by_design")
    assert list(read(tmp_path, RECIPE, broken).steps) == ["baseline", "cut"]
    error = refused(tmp_path, changed("cut: {share: 0.25}", "melt: {}"), broken)
    assert "plugin 'broken'" in error.mend
    assert "OSError: no library" in error.mend
