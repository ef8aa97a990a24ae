"""The one training loop: what it promises every technique, on the real digits."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import save
from compress_core.data import Columns, Splits
from compress_core.errors import TrainingError
from compress_core.masks import hold_zeros, masked_tensors
from compress_core.measure import Quality
from compress_core.parts import Change, TrainingTechnique
from compress_core.training import parameter_groups, train
from tests.core.fakes import Learn
from tests.support import digits, make, make_run

CALLS: list[tuple[Any, ...]] = []


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


class Spy(TrainingTechnique):
    """Writes down when it is called; its name and kind are parameters of the class."""

    changed: tuple[Change, ...] = (Change.WEIGHTS,)

    @property
    def changes(self):
        return frozenset(self.changed)

    def plan(self, plan, run):
        CALLS.append(("plan", self.name))
        return plan

    def prepare(self, model, run):
        CALLS.append(("prepare", self.name))
        return model

    def begin(self, model, run):
        CALLS.append(("begin", self.name))

    def after_backward(self, model, state, progress, run):
        assert all(parameter.grad is not None for parameter in model.parameters())
        CALLS.append(("after_backward", self.name, progress))

    def after_step(self, model, state, progress, run):
        CALLS.append(("after_step", self.name, progress))

    def finish(self, model, state, run):
        CALLS.append(("finish", self.name))
        return model


class SpyShape(Spy):
    name = "a-shape"
    changed: tuple[Change, ...] = (Change.ARCHITECTURE,)


class SpyWeights(Spy):
    name = "b-weights"


class SpyNumbers(Spy):
    name = "0-numbers"
    changed: tuple[Change, ...] = (Change.NUMBERS,)


class Plan(TrainingTechnique):
    """Sets fields of the plan."""

    name = "plan"
    fields: dict[str, Any] = Field(default_factory=dict)

    @property
    def changes(self):
        return frozenset({Change.TRAINING})

    @property
    def brings_epochs(self):
        return True

    def plan(self, plan, run):
        return replace(plan, **{"epochs": 1, **self.fields})


class Scale(nn.Module):
    """A state with a parameter and a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.register_buffer("count", torch.zeros(()))


class WithState(TrainingTechnique):
    """Learns a factor of its own beside the network."""

    name = "with-state"

    def begin(self, model, run):
        return Scale()

    def loss(self, batch, output, model, state, run):
        return (state.factor - 3) ** 2

    def after_step(self, model, state, progress, run):
        state.count += 1

    def finish(self, model, state, run):
        CALLS.append((float(state.factor.detach()), float(state.count)))
        return model


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_training_learns_the_digits():
    trained = apply_techniques(make("mlp"), [Learn(epochs=6)], make_run())
    assert make_run().evaluate(make("mlp")).value < 0.3
    assert make_run().evaluate(trained).value > 0.9


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(name):
    def run(seed):
        torch.rand(seed + 3)  # the caller's own random numbers do not matter
        return apply_techniques(make(name), [Learn(epochs=1)], make_run(seed=seed))

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


def test_the_given_network_stays_as_it_was():
    model = make("conv")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = apply_techniques(model, [Learn()], make_run())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not same(model, result)
    assert not result.training


def test_techniques_are_called_in_the_documented_order():
    train(make("mlp"), [Plan(), SpyNumbers(), SpyWeights(), SpyShape()], make_run(max_batches=2))
    working, finishing = ["a-shape", "b-weights", "0-numbers"], ["a-shape", "b-weights", "0-numbers"]
    for hook in ("plan", "prepare", "begin"):
        assert [call[1] for call in CALLS if call[0] == hook] == working
    steps = [call for call in CALLS if call[0].startswith("after")]
    expected = [
        (hook, name, progress)
        for progress in (0.5, 1.0)
        for hook in ("after_backward", "after_step")
        for name in working
    ]
    assert steps == expected
    assert [call[1] for call in CALLS if call[0] == "finish"] == finishing
    hooks = [call[0] for call in CALLS]
    assert hooks.index("prepare") > max(i for i, hook in enumerate(hooks) if hook == "plan")
    assert hooks.index("begin") > max(i for i, hook in enumerate(hooks) if hook == "prepare")


def test_without_epochs_a_technique_acts_once_and_finishes():
    before = make("mlp")
    model = train(make("mlp"), [SpyWeights()], make_run())
    assert [call[0] for call in CALLS] == ["plan", "prepare", "begin", "after_step", "finish"]
    assert CALLS[3][2] == 1.0
    assert same(before, model)


def test_a_state_learns_and_is_not_saved_with_the_network():
    model = train(make("mlp"), [Plan(fields={"keep": "last", "epochs": 4}), WithState()], make_run())
    ((factor, count),) = CALLS
    assert count == 4 * (997 // 64)
    assert 1.0 < factor < 3.0
    assert not any("factor" in name or "count" in name for name in model.state_dict())


def test_a_state_that_owns_a_parameter_of_the_network_is_refused():
    class Thief(TrainingTechnique):
        """Keeps a layer of the network in its state."""

        name = "thief"

        def begin(self, model, run):
            return nn.ModuleList([model.layers[1]])

    with pytest.raises(TrainingError, match=r"owns the network's parameter 'layers.1.weight'"):
        train(make("mlp"), [Plan(), Thief()], make_run())


def test_a_parameter_that_is_replaced_while_training_is_named():
    class Replacer(TrainingTechnique):
        """Puts another object in a parameter's place."""

        name = "replacer"

        def after_step(self, model, state, progress, run):
            model.layers[3].bias = nn.Parameter(model.layers[3].bias.detach().clone())

    with pytest.raises(TrainingError, match=r"'layers.3.bias' was replaced"):
        train(make("mlp"), [Plan(), Replacer()], make_run(max_batches=1))


@pytest.mark.parametrize("with_state", [False, True])
def test_a_training_in_which_nothing_of_the_network_can_train_is_an_error(with_state):
    model = make("mlp").requires_grad_(False)
    techniques = [Plan(), WithState()] if with_state else [Plan()]
    with pytest.raises(TrainingError, match="no parameter of the network can be trained"):
        train(model, techniques, make_run())


def test_held_zeros_stay_zero_through_a_training_with_momentum_and_decay():
    model = make("mlp")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = model.layers[1].weight
        weight[torch.rand(weight.shape, generator=generator) < 0.5] = 0
    hold_zeros(model.layers[1], "weight")
    zeros = model.layers[1].weight == 0
    before = model.layers[1].weight.detach().clone()
    plan = {"weight_decay": 0.1, "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)}
    trained = train(model, [Plan(fields=plan)], make_run())
    assert masked_tensors(trained) == ["layers.1.weight"]
    assert 0.45 < zeros.float().mean() < 0.55
    assert bool((trained.layers[1].weight[zeros] == 0).all())
    assert bool((trained.layers[1].weight[~zeros] != before[~zeros]).any())


def test_zeros_that_a_technique_makes_when_it_begins_may_come_back_beside_held_ones():
    class Silence(TrainingTechnique):
        name = "silence"

        def begin(self, model, run):
            with torch.no_grad():
                model.layers[1].weight[:, 20] = 0

    model = make("mlp")
    with torch.no_grad():
        model.layers[1].weight[:, 19] = 0
    hold_zeros(model.layers[1], "weight")
    trained = train(model, [Silence(), Learn(epochs=1)], make_run())
    assert (trained.layers[1].weight[:, 19] == 0).all()
    assert (trained.layers[1].weight[:, 20] != 0).any()


def test_a_loss_that_is_no_number_ends_the_training_and_writes_nothing(tmp_path):
    model = make("mlp")
    with pytest.raises(TrainingError, match=r"the loss is .* in epoch \d") as caught:
        result = apply_techniques(model, [Learn(rate=1e25, epochs=3)], make_run())
        save(result, tmp_path / "model", factory="tests.support:MLP")
    assert "lower the learning rate" in caught.value.mend
    assert list(tmp_path.iterdir()) == []


def test_data_with_no_number_in_it_is_noticed_at_the_first_such_batch():
    image = digits().train.columns["image"].clone()
    image[5] = float("nan")
    bad = Columns({"image": image, "label": digits().train.columns["label"]})
    with pytest.raises(TrainingError, match="the loss is nan in epoch 1") as caught:
        train(make("mlp"), [Plan()], make_run(Splits(bad, digits().validation, digits().test)))
    assert "check the data" in caught.value.mend


class Fixed:
    """A run's `evaluate` that gives written values, one per epoch, and notes the weights it saw."""

    def __init__(self, monkeypatch, values: list[float], *, higher: bool = True) -> None:
        self.values, self.seen, self.higher = values, [], higher

        def evaluate(run, model):
            self.seen.append(model.layers[1].weight.detach().clone())
            return Quality("q", self.values[len(self.seen) - 1], 0, 1, 1, self.higher)

        monkeypatch.setattr("compress_core.run.Run.evaluate", evaluate)

    def epoch_of(self, model: nn.Module) -> int:
        """The epoch, from 1, whose weights the network has."""
        return 1 + next(i for i, weight in enumerate(self.seen) if torch.equal(weight, model.layers[1].weight))


@pytest.mark.parametrize(
    ("values", "fields", "chosen", "trained"),
    [
        ([0.1, 0.9, 0.5], {}, 2, 3),
        ([0.1, 0.9, 0.9], {}, 2, 3),
        ([0.1, 0.9, 0.5], {"keep": "last"}, 3, 3),
        ([0.9, 0.1, 0.5], {"select_from": 0.5}, 3, 3),
        ([0.9, 0.1, 0.05], {"select_from": 2 / 3}, 2, 3),
        ([0.9, 0.1, 0.05], {"select_from": 1.0}, 3, 3),
        ([0.5, 0.4, 0.6, 0.5, 0.4, 0.3, 0.9], {"patience": 3}, 3, 6),
        ([0.5, 0.4, 0.3, 0.9, 0.1], {"patience": 2, "select_from": 0.8}, 4, 5),
        ([float("nan"), 0.2, 0.1], {}, 2, 3),
    ],
)
def test_the_best_epoch_is_kept_and_training_stops_in_time(monkeypatch, values, fields, chosen, trained):
    fixed = Fixed(monkeypatch, values)
    model = train(make("mlp"), [Plan(fields={"epochs": len(values), **fields})], make_run())
    assert (fixed.epoch_of(model), len(fixed.seen)) == (chosen, trained)


def test_where_lower_is_better_the_lowest_epoch_is_kept(monkeypatch):
    fixed = Fixed(monkeypatch, [0.5, 0.2, 0.9], higher=False)
    model = train(make("mlp"), [Plan(fields={"epochs": 3})], make_run())
    assert fixed.epoch_of(model) == 2


def test_the_state_goes_back_to_the_best_epoch_with_the_network(monkeypatch):
    Fixed(monkeypatch, [0.1, 0.9, 0.5])
    train(make("mlp"), [Plan(fields={"epochs": 3}), WithState()], make_run())
    assert CALLS[0][1] == 2 * (997 // 64)


def test_norms_biases_and_states_do_not_decay():
    model, state = make("conv"), Scale()
    model.head.weight.requires_grad_(False)
    decaying, plain = parameter_groups(model, state, 0.3)
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {parameter.ndim for parameter in decaying["params"]} == {4}
    assert any(parameter is state.factor for parameter in plain["params"])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(decaying["params"]) + len(plain["params"]) == len(trainable) + 1


def test_the_schedule_multiplies_the_rate_by_the_share_of_updates_done():
    rates = []

    class Watch(TrainingTechnique):
        """Reads the optimizer's rate after every update."""

        name = "watch"

        def after_backward(self, model, state, progress, run):
            rates.append(optimizers[0].param_groups[0]["lr"])

    optimizers = []

    def make_optimizer(groups):
        optimizers.append(torch.optim.SGD(groups, lr=0.1))
        return optimizers[0]

    fields = {"optimizer": make_optimizer, "schedule": lambda progress: 1 - progress, "batch_size": 249}
    train(make("mlp"), [Plan(fields=fields), Watch()], make_run())
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


@pytest.mark.parametrize("precisions", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_one_process_trains_in_several_precisions_and_nothing_stays_on_the_network(tmp_path, precisions):
    trained = {name: train(make("conv"), [Learn()], make_run(precision=name)) for name in precisions}
    assert not torch.equal(trained["float32"].stem.weight, trained["bfloat16"].stem.weight)
    for name, model in trained.items():
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model(make_run().example[0][0]).dtype == torch.float32
        save(model, tmp_path / name, factory="tests.support:ConvNet")


class Hung(Learn):
    """Hangs a hook on the network while it trains."""

    name = "hung"

    def begin(self, model, run):
        state = nn.Module()
        state.handle = model.register_forward_hook(lambda *_: None)
        return state

    def finish(self, model, state, run):
        state.handle.remove()
        CALLS.append("finish")
        return model

    def abandon(self, model, state, run):
        state.handle.remove()
        CALLS.append("abandon")


@pytest.mark.parametrize(("rate", "ending"), [(1e-3, "finish"), (1e30, "abandon")])
def test_a_training_that_fails_is_abandoned_by_its_techniques(rate, ending):
    model = make("mlp")
    try:
        train(model, [Hung(rate=rate)], make_run())
    except TrainingError:
        assert ending == "abandon"
    assert [ending] == CALLS
    assert not model._forward_hooks


class Steep(TrainingTechnique):
    """Has a parameter of its own with an enormous gradient."""

    name = "steep"

    def plan(self, plan, run):
        return replace(plan, epochs=1, gradient_clip=1.0, optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-5))

    def begin(self, model, run):
        state = nn.Module()
        state.slope = nn.Parameter(torch.zeros(()))
        return state

    def loss(self, batch, output, model, state, run):
        return 2e4 * state.slope

    def finish(self, model, state, run):
        CALLS.append(abs(float(state.slope.detach())))
        return model


def test_the_gradients_of_states_are_clipped_with_those_of_the_network():
    train(make("mlp"), [Steep()], make_run(max_batches=3))
    assert 0 < CALLS[0] <= 3.001e-5


def test_the_gradient_is_clipped_to_its_largest_norm():
    norms = []

    class Sgd(torch.optim.SGD):
        """Notes the norm that arrives."""

        def step(self, closure=None):
            squares = [p.grad.square().sum() for group in self.param_groups for p in group["params"]]
            norms.append(float(torch.stack(squares).sum().sqrt()))
            return super().step(closure)

    fields = {"optimizer": lambda groups: Sgd(groups, lr=0.01), "gradient_clip": 0.01}
    train(make("mlp"), [Plan(fields=fields)], make_run(max_batches=3))
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_the_loss_is_the_weighted_task_with_the_regularizers_and_the_terms(monkeypatch):
    logged = {}
    model = make("mlp")
    batch = {name: column[:1] for name, column in digits().train.columns.items()}
    one = Splits(Columns(batch), digits().validation, digits().test)
    run = make_run(one, logger=lambda name, value, step: logged.setdefault(name, value))
    task = run.task.loss(model(batch["image"]), batch).item()
    fields = {"task_weight": 0.25, "regularizers": (lambda network: torch.tensor(7.0),)}
    train(model, [Plan(fields=fields), WithState()], run)
    assert logged["train/loss"] == pytest.approx(0.25 * task + 7.0 + 4.0, rel=1e-5)


def test_every_example_is_seen_once_per_epoch_in_an_order_that_the_epoch_decides():
    index = torch.arange(130)
    split = Columns({"image": torch.zeros(130, 1, 8, 8), "label": index % 10, "index": index})
    seen: list[list[int]] = []

    class Look(TrainingTechnique):
        """Notes which examples come."""

        name = "look"

        def loss(self, batch, output, model, state, run):
            seen.append(batch["index"].tolist())

    run = make_run(Splits(split, split, split))
    train(make("mlp"), [Plan(fields={"epochs": 2, "batch_size": 26}), Look()], run)
    first, second = list(chain(*seen[:5])), list(chain(*seen[5:]))
    assert sorted(first) == sorted(second) == index.tolist()
    assert first != second
    assert first != index.tolist()


def test_what_happens_is_logged_epoch_by_epoch():
    logged = []
    run = make_run(logger=lambda *figures: logged.append(figures))
    train(make("mlp"), [Plan(fields={"epochs": 2})], run)
    assert [(name, step) for name, _, step in logged] == [
        (name, epoch) for epoch in (1, 2) for name in ("train/loss", "train/learning_rate", "validation/accuracy")
    ]
