"""The conformance kit: it passes what is right and names what is not."""

from __future__ import annotations

import os
import sys
import tempfile
import types
import warnings
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from pydantic import ConfigDict, PrivateAttr
from torch import nn

from compress_core import hookimpl
from compress_core.errors import ModelError, PluginError
from compress_core.parts import Change, Exporter, Technique, TrainingTechnique
from compress_core.testing import (
    NETS,
    ConformanceError,
    Epochs,
    check_technique,
    check_watcher,
    checks_for,
    factory_of,
    make_net,
)
from compress_core.testing.elsewhere import _SERVING, hashes, hashes_elsewhere
from compress_core.testing.subject import Subject, written


class Halve(Technique):
    """Divide every weight by two: nothing is wrong with it."""

    name = "halve"

    times: int = 1
    """How often."""

    def apply(self, model, run):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5**self.times)
        run.say(f"halve: {self.times} times")
        return model


class OnlyConvolutions(Halve):
    """Refuse what has no convolution."""

    name = "only-convolutions"

    def apply(self, model, run):
        if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
            raise ModelError("the network has no convolution", mend="leave this step out")
        run.say("only-convolutions: done")
        return super().apply(model, run)


def run_check(kind, name, **options):
    technique = kind() if isinstance(kind, type) and name != "parameters" else kind
    found = {str(check): check for check in checks_for(technique, export=False, others=[], **options)}
    return found[name]()


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    """No other process is asked but where it is what is tested: each answer imports this file there."""
    if "process" not in request.node.name:
        monkeypatch.setattr("compress_core.testing.promises.hashes_elsewhere", lambda technique, net: None)


def written_by(technique, net):
    with tempfile.TemporaryDirectory() as folder:
        return written(Subject(technique).again(net), net, Path(folder) / "made")


def test_a_sound_technique_passes_every_check_and_refuses_nothing():
    report = check_technique(Halve(times=2), others=[Epochs()], export=False)
    assert report.refused == {}
    assert report.technique == "halve"
    for net in NETS:
        assert {f"runs[{net}]", f"repeats[{net}]", f"survives[{net}]", f"trains-on[{net}]"} <= set(report.passed)
    assert {f"composes[{way}-kit-epochs]" for way in ("after", "before", "with")} <= set(report.passed)


def test_a_refusal_is_reported_with_what_and_how_to_mend_it():
    report = check_technique(OnlyConvolutions(), others=[], export=False)
    assert report.refused_nets() == ("mlp", "transformer", "lstm")
    refusal = report.refused["runs[lstm]"]
    assert (refusal.what, refusal.mend) == ("the network has no convolution", "leave this step out")
    assert "runs[conv]" in report.passed


def test_nets_and_composing_can_be_left_out():
    names = [str(check) for check in checks_for(Halve(), nets=["mlp"], compose=False, export=False)]
    assert names == ["parameters", "runs[mlp]", "repeats[mlp]", "survives[mlp]", "trains-on[mlp]"]


@pytest.mark.parametrize(("nets", "mend"), [(["mlp", "cnov"], "did you mean 'conv'?"), ("mlp", "nets=['mlp']")])
def test_a_network_that_the_kit_lacks_is_the_callers_mistake_and_not_the_techniques(nets, mend):
    for check in (check_technique, checks_for):
        with pytest.raises(PluginError) as error:
            check(Halve(), nets=nets)
        assert (error.value.where, error.value.mend) == ("nets", mend)


def test_it_composes_with_every_installed_technique_unless_others_are_given():
    from compress_core.catalog import catalog

    names = {str(check) for check in checks_for(Halve())}
    for other in catalog().techniques:
        assert {f"composes[{way}-{other}]" for way in ("after", "before", "with")} <= names
    writing = {f"exports[{name}]" for name, kind in catalog().exporters.items() if kind.chosen is Exporter.chosen}
    assert writing == {name for name in names if name.startswith("exports")}
    assert {"exports[onnx]", "exports[packed]"} <= writing
    assert not any("composes[after-clip]" in str(check) for check in checks_for(Halve(), others=[]))


class NoDocs(Halve):
    """A field without documentation."""

    name = "no-docs"
    rate: float = 0.5


class Loose(Halve):
    """Unknown parameters pass unseen."""

    name = "loose"
    model_config = ConfigDict(extra="ignore")


class Remembers(Halve):
    """State where none may be."""

    name = "remembers"
    _count: int = PrivateAttr(0)


class WrongExample(Halve):
    """An example that makes no instance."""

    name = "wrong-example"
    example = {"times": "often"}  # noqa: RUF012


class Shouting(Halve):
    """A name that no recipe can hold."""

    name = "Shouting!"


class Odd(Halve):
    """A parameter that does not come back from YAML."""

    name = "odd"
    example = {"shape": {1: 2}}  # noqa: RUF012
    shape: dict[int, int] = {}  # noqa: RUF012
    """Keys that YAML keeps, so this one is right."""


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic's own, which is easily overlooked

    class Hiding(TrainingTechnique):
        """A field where a method should be."""

        name = "hiding"
        begin: float = 0.0
        """When to begin."""


class Undocumented(Halve):
    name = "undocumented"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (NoDocs, "the field 'rate' has no documentation"),
        (Loose, "mistakes would pass unseen"),
        (Remembers, "keeps state in '_count'"),
        (WrongExample, "(?s)the example makes no instance: .*times"),
        (Hiding, "the field 'begin' hides a method"),
        (Shouting, "cannot name 'Shouting!'"),
        (Undocumented, "no docstring"),
    ],
)
def test_wrong_parameters_are_found(kind, message):
    with pytest.raises(ConformanceError, match=message) as error:
        run_check(kind, "parameters")
    assert error.value.mend
    assert str(error.value).startswith(f"{kind.name}, parameters: ")


def test_mappings_with_numbers_as_keys_come_back_from_yaml():
    assert run_check(Odd, "parameters") is None


def broken(label, check, message):
    """Register a body of `apply` as a technique that breaks one promise."""

    def register(apply):
        kind = type(
            label.title().replace("-", ""),
            (Technique,),
            {"__doc__": "Broken on purpose.", "__module__": __name__, "name": label, "apply": apply},
        )
        BROKEN.append((kind, check, message))
        return apply

    return register


BROKEN: list[tuple[type[Technique], str, str]] = []
_calls = count(1)


@broken("clumsy", "runs[mlp]", "ValueError: no idea")
def _clumsy(self, model, run):
    raise ValueError("no idea")


@broken("curt", "runs[mlp]", "'not this one' does not say how to mend it")
def _curt(self, model, run):
    raise ModelError("not this one")


@broken("silent", "runs[mlp]", "does not say what it did")
def _silent(self, model, run):
    nn.init.zeros_(model.layers[1].weight)
    return model


@broken("idle", "runs[mlp]", "changed nothing and does not say so")
def _idle(self, model, run):
    run.say("idle: well done")
    return model


@broken("undeclared", "runs[mlp]", "neither ARCHITECTURE nor NUMBERS")
def _undeclared(self, model, run):
    model.layers[2] = nn.GELU()
    run.say("undeclared: one activation is another")
    return model


@broken("nan", "runs[mlp]", "outputs that are not finite")
def _nan(self, model, run):
    nn.init.constant_(model.layers[1].weight, float("nan"))
    run.say("nan: there")
    return model


@broken("too-narrow", "runs[mlp]", "does not run in eval mode")
def _too_narrow(self, model, run):
    model.layers[3] = nn.Linear(31, 32)
    run.say("too-narrow: there")
    return model


@broken("moody", "repeats[mlp]", "the same seed makes other bytes")
def _moody(self, model, run):
    nn.init.constant_(model.layers[1].weight, 1 / next(_calls))
    run.say("moody: there")
    return model


class Unsorted(Technique):
    """Give noise to the parameters in the order of a set of their names."""

    name = "unsorted"

    def apply(self, model, run):
        generator = torch.Generator().manual_seed(run.seed)
        with torch.no_grad():
            for name in set(dict(model.named_parameters())):
                parameter = model.get_parameter(name)
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        run.say("unsorted: noise everywhere")
        return model


class Homebound(Halve):
    """Work in the process of these tests only."""

    name = "homebound"

    def apply(self, model, run):
        if _SERVING in os.environ:
            raise KeyError("the key under the mat")
        return super().apply(model, run)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Unsorted, "the same seed makes other bytes in another process"),
        (Homebound, "in another process it fails: KeyError: 'the key under the mat'"),
    ],
)
def test_what_differs_between_processes_is_found_on_one_network(kind, message):
    with pytest.raises(ConformanceError, match=message):
        run_check(kind, "repeats[mlp]", nets=["mlp", "lstm"])
    assert run_check(kind, "repeats[lstm]", nets=["mlp", "lstm"]) is None


def test_another_process_makes_the_same_bytes_of_what_can_be_imported_there():
    class Local(Halve):
        """Nobody else can import it."""

        name = "local"

    assert hashes_elsewhere(Local(), "mlp") is None
    files = written_by(Halve(times=3), "mlp")
    assert hashes_elsewhere(Halve(times=3), "mlp") == hashes(files)
    assert hashes_elsewhere(Halve(times=2), "mlp") != hashes(files)


@broken("hooked", "survives[mlp]", "cannot be saved: .*still has a hook")
def _hooked(self, model, run):
    model.layers[1].register_forward_hook(lambda module, inputs, output: output * 2)
    run.say("hooked: nothing changed")
    return model


@broken("hidden", "survives[lstm]", "gives other outputs")
def _hidden(self, model, run):
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            module._flat_weights = [weight.detach() * 2 for weight in module._flat_weights]
    run.say("hidden: the weights lie where no artifact looks, nothing changed elsewhere")
    return model


@broken("frozen", "trains-on[mlp]", "training the result changes nothing")
def _frozen(self, model, run):
    model.requires_grad_(False)
    model.layers[5].bias = nn.Parameter(torch.full((10,), 1e30))
    run.say("frozen: no update is large enough")
    return model


@broken("leaky", "runs[mlp]", "torch's gradient mode is not as it was")
def _leaky(self, model, run):
    torch.set_grad_enabled(False)
    nn.init.zeros_(model.layers[1].weight)
    run.say("leaky: there")
    return model


@pytest.mark.parametrize(("kind", "check", "message"), BROKEN, ids=lambda value: getattr(value, "name", None))
def test_a_broken_promise_is_found_by_its_check_and_says_how_to_mend_it(kind, check, message):
    with pytest.raises(ConformanceError, match=message) as error:
        run_check(kind, check, nets=["lstm" if "[lstm]" in check else "mlp"], compose=False)
    assert str(error.value).startswith(f"{kind.name}, {check}: ")
    assert len(error.value.mend) > 10
    assert torch.is_grad_enabled()


def test_all_broken_promises_are_told_at_once():
    clumsy = next(kind for kind, _, _ in BROKEN if kind.name == "clumsy")
    with pytest.raises(ConformanceError, match="5 of 6 promises are not kept") as error:
        check_technique(clumsy(), nets=["mlp"], others=[], export=False)
    assert "clumsy, survives[mlp]: ValueError: no idea" in str(error.value)


class Meddles(Halve):
    """Change the teacher."""

    name = "meddles"
    needs_teacher = True

    def apply(self, model, run):
        nn.init.zeros_(next(run.teacher.parameters()))
        run.say("meddles: there")
        return super().apply(model, run)


def test_a_changed_teacher_is_found():
    with pytest.raises(ConformanceError, match=r"the teacher is not as it was: the tensor 'layers.1.weight'"):
        run_check(Meddles, "runs[mlp]")


class Holds(TrainingTechnique):
    """Remove every other input, and hold the zeros if it is told to."""

    name = "holds"
    example = {"hold": True}  # noqa: RUF012

    hold: bool = True
    """Whether the zeros stay."""

    def finish(self, model, state, run):
        from compress_core.masks import hold_zeros

        with torch.no_grad():
            model.layers[1].weight[:, ::2] = 0
        if self.hold:
            hold_zeros(model.layers[1], "weight")
        run.say("holds: half of the inputs went")
        return model


def test_held_zeros_are_looked_after_while_training_on(monkeypatch):
    assert run_check(Holds, "trains-on[mlp]") is None
    monkeypatch.setattr("compress_core.masks.HeldZeros.apply_to", lambda self, model: None)
    with pytest.raises(ConformanceError, match=r"removed weights of 'layers.1.weight' come back"):
        run_check(Holds, "trains-on[mlp]")


class Learns(TrainingTechnique):
    """Learn from a teacher."""

    name = "learns"
    needs_teacher = True
    needs_epochs = True

    @property
    def changes(self):
        return frozenset({Change.TRAINING})

    def loss(self, batch, output, model, state, run):
        with torch.no_grad():
            taught = run.forward(run.teacher, batch)
        return (output - taught).square().mean()


def test_a_technique_that_needs_a_teacher_and_a_training_gets_both():
    report = check_technique(Learns(), others=[Halve()], export=False)
    assert report.refused == {}


class Rounds(Technique):
    """Round every weight to eighths, and call that a format of numbers."""

    name = "rounds"

    @property
    def changes(self):
        return frozenset({Change.NUMBERS})

    def apply(self, model, run):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter * 8).round() / 8)
        run.say("rounds: to eighths")
        return model


def test_what_may_follow_a_change_of_numbers_is_refused_with_the_step_at_fault():
    report = check_technique(Rounds(), nets=["mlp"], others=[Halve(), Epochs()], export=False)
    mend = "move it before 'rounds', or into the same step"
    for name in ("trains-on[mlp]", "composes[before-halve]", "composes[before-kit-epochs]", "composes[after-itself]"):
        assert report.refused[name].mend == mend
    assert {"composes[after-halve]", "composes[with-halve]", "composes[with-kit-epochs]"} <= set(report.passed)


class Finicky(Halve):
    """Fail on a network that another technique has changed."""

    name = "finicky"

    def apply(self, model, run):
        run.say("finicky: there")
        return super().apply(model, run) if model.layers[1].weight.count_nonzero() > 1024 else model.nowhere


def test_a_failure_beside_another_technique_names_both():
    with pytest.raises(ConformanceError, match="holds, then finicky: AttributeError"):
        check_technique(Finicky(), nets=["mlp"], others=[Holds()], export=False)


def test_a_combination_is_tried_on_a_network_that_both_accept():
    report = check_technique(OnlyConvolutions(), nets=["mlp", "conv"], others=[Halve()], export=False)
    assert {"composes[after-halve]", "composes[before-halve]", "composes[with-halve]"} <= set(report.passed)


class Faulty(Exporter):
    """A format that loses something, to a degree."""

    name = "faulty"
    error: ClassVar[float] = 0.0

    def export(self, model, folder, example):
        torch.save(model, folder / "model.pt")

    def load(self, folder, threads):
        model = torch.load(folder / "model.pt", weights_only=False)
        return lambda *arguments: model(*arguments) * (1 + self.error)


@pytest.fixture
def installed(monkeypatch):
    """A catalog of our own: `installed(exporters=…, owners=…)`."""

    def install(**parts):
        found = types.SimpleNamespace(**{"techniques": {}, "exporters": {}, "owners": {}, **parts})
        monkeypatch.setattr("compress_core.testing.checks.catalog", lambda: found)

    return install


def test_an_export_that_gives_other_outputs_is_found(installed, monkeypatch):
    installed(exporters={"faulty": Faulty})
    (check,) = (check for check in checks_for(Halve(), compose=False) if str(check) == "exports[faulty]")
    assert check() is None
    monkeypatch.setattr(Faulty, "error", 0.01)
    with pytest.raises(ConformanceError, match="the exported file differs"):
        check()


def test_a_package_that_imports_torch_is_found(installed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for package, line in (("kit_heavy", "import torch"), ("kit_light", "import json"), ("kit_torn", "import nowhere")):
        (tmp_path / f"{package}.py").write_text(line)

    def check(package):
        installed(owners={Halve: 1}, owner=lambda kind: types.SimpleNamespace(package=package))
        return next(check for check in checks_for(Halve(), nets=[], compose=False) if str(check) == "imports")()

    assert check("kit_light") is None
    with pytest.raises(ConformanceError, match="importing kit_heavy imports torch"):
        check("kit_heavy")
    with pytest.raises(ConformanceError, match=r"kit_torn cannot be imported by itself: .*nowhere"):
        check("kit_torn")


def test_the_networks_are_seeded_and_can_be_built_by_their_import_strings():
    from compress_core.factory import build_model

    for net in NETS:
        one, again, other = make_net(net), make_net(net), make_net(net, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert type(build_model(factory_of(one), {})) is type(one)


def watcher(**hooks):
    """A plugin with these hooks."""
    module = types.ModuleType("kit_watcher")
    for name, hook in hooks.items():
        setattr(module, name, hookimpl(hook))
    return module


def test_a_watcher_that_writes_into_its_folder_passes_and_its_files_are_listed():
    def stage_finished(stage, metrics):
        (stage.folder / "done.txt").write_text("x" * metrics["bytes"])

    assert check_watcher(watcher(stage_finished=stage_finished)) == {
        "exported/done.txt": 1024,
        "trained/done.txt": 1024,
    }


def test_a_watcher_is_found_by_the_name_of_its_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "kit_watcher", watcher(stage_started=lambda stage: None))
    assert check_watcher("kit_watcher") == {}


def _outside(stage):
    (stage.folder.parent / "stray").touch()


def _without_network(model):
    return next(model.parameters())


def _touching(model):
    if model is not None:
        nn.init.zeros_(next(model.parameters()))


def _careless(metrics):
    metrics["mine"] = 1


def _grading(metrics):
    metrics["quality"]["value"] = 1.0


def _adding(stage):
    stage.parameters["mine"] = 1


def _skipping(stage):
    stage.parameters["prune.skip"].append("tail")


def _integer(value):
    return int(value)


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"stage_begun": lambda stage: None}, "a hook does not fit: .*stage_begun"),
        ({"stage_started": lambda stag: None}, "a hook does not fit"),
        ({}, "watches nothing"),
        ({"stage_started": _outside}, "it writes 'stray' beside"),
        ({"stage_finished": _without_network}, "stage_finished: AttributeError"),
        ({"stage_finished": _touching}, "the watched network is not as it was"),
        ({"stage_finished": _careless}, "the metrics are not as they were"),
        ({"stage_finished": _grading}, "the metrics are not as they were"),
        ({"stage_started": _adding}, "the parameters of 'trained' are not as they were"),
        ({"stage_failed": _skipping}, "the parameters of 'failed' are not as they were"),
        ({"scalar_logged": _integer}, "scalar_logged: ValueError: cannot convert float NaN"),
    ],
)
def test_a_wrong_watcher_is_found(hooks, message):
    with pytest.raises(ConformanceError, match=message):
        check_watcher(watcher(**hooks))
