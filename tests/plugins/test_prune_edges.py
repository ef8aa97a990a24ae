"""Pruning at the edges: empty and shared weights, short floats, sparse gradients, arguments by name, odd rounds."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from compress_prune import Prune
from compress_prune.criteria import L1, Fisher, Movement, Taylor
from compress_prune.depth import find_blocks
from compress_prune.dynamic import Exchange, Rigl
from compress_prune.masks import WeightMasks
from compress_prune.observing import Inputs, Scorer
from compress_prune.patterns import Singles
from compress_prune.scoring import distances
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.errors import ModelError, TrainingError
from compress_core.parts import Criterion
from compress_core.testing import Epochs
from tests.support import make, make_run


class Hollow(nn.Module):
    """Has a layer that writes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.none = nn.Linear(8, 0)

    def forward(self, image):
        hidden = self.first(image.flatten(1)).relu()
        return self.last(torch.cat([hidden, self.none(hidden)], dim=1))


class ByName(nn.Module):
    """Gives its layers their inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, image):
        return self.last(input=self.first(input=image.flatten(1)).relu())


class Twice(nn.Module):
    """Has one layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = nn.Linear(64, 10), nn.Linear(10, 10)
        self.other = self.one

    def forward(self, image):
        return self.other(self.one(self.first(image.flatten(1)).relu()).relu())


class Table(nn.Module):
    """Its embedding has sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(32, 8, sparse=True), nn.Linear(8, 10)

    def forward(self, image):
        return self.last(self.table((image.flatten(1) * 31).long().clamp(0, 31)).mean(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return x + self.two(F.relu(self.one(x)))


class Encoder(nn.Module):
    """Torch's encoder asks its first layer for its attributes: layers can only leave the list."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 10)
        self.encoder = nn.TransformerEncoder(layer, 4)

    def forward(self, image):
        return self.last(self.encoder(self.first(image.reshape(-1, 8, 8))).mean(1))


class Value(Criterion):
    """The weight itself, not a copy of it."""

    name = "value"

    def weight_scores(self, name, weight, state):
        return weight


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def zeros(model):
    return {name: int((parameter == 0).sum()) for name, parameter in model.named_parameters() if parameter.ndim > 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"amount": 0.5},
        {"amount": 0.5, "allocation": "global"},
        {"amount": 0.5, "allocation": "erk"},
        {"pattern": "2:4"},
    ],
)
def test_a_weight_without_entries_is_none(fields):
    found = zeros(apply_techniques(Hollow(), [Prune(**fields)], make_run()))
    assert sum(found.values()) == (64 * 8 + 8 * 10) // 2
    assert found["none.weight"] == 0


def test_channels_beside_a_layer_that_writes_nothing_go():
    found = apply_techniques(Hollow(), [Prune(amount=0.5, granularity="channel")], make_run())
    assert found.get_parameter("first.weight").shape == (4, 64)


@pytest.mark.parametrize(
    "fields",
    [
        {"criterion": "wanda"},
        {"criterion": "activation", "granularity": "channel"},
        {"of": "macs", "granularity": "channel"},
    ],
)
def test_layers_that_get_their_input_by_name_are_watched_too(fields):
    model, other = ByName(), nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    other[1].load_state_dict(model.first.state_dict())
    other[3].load_state_dict(model.last.state_dict())
    found, expected = (
        apply_techniques(net, [Prune(amount=0.5, **fields)], make_run()).state_dict().values() for net in (model, other)
    )
    assert all(torch.equal(one, another) for one, another in zip(found, expected, strict=True))


@pytest.mark.parametrize("path", ["one", "other"])
def test_a_layer_in_two_places_is_named_by_either(path):
    assert zeros(apply_techniques(Twice(), [Prune(amount=0.5, only=(path,))], make_run())) == {
        "first.weight": 0,
        "one.weight": 50,
    }


def test_a_layer_of_which_nothing_is_left_is_named():
    said: list[str] = []
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(36, 10))
    apply_techniques(model, [Prune(amount=0.95)], make_run(teller=said.append))
    assert said == [
        "prune: 351 of 369 weights went; 351 are zero now",
        "prune: nothing is left of 0.weight: lower `amount`, or name the layers in `skip`",
    ]


class Tied(nn.Module):
    """Reads and writes with one table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.last = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
        self.last.weight = self.table.weight

    def forward(self, image):
        return self.last(self.hidden(self.table((image.flatten(1) * 9).long())).mean(1))


def test_a_tied_weight_goes_where_all_its_modules_are_named_and_else_stays_with_the_reason():
    said: list[str] = []
    run = make_run(teller=said.append)
    both = apply_techniques(Tied(), [Prune(amount=0.5, only=("table", "last"))], run)
    assert zeros(both) == {"table.weight": 40, "hidden.weight": 0}
    with pytest.raises(ModelError, match=r"'last' in `only` cannot be pruned: it is also table\.weight, which stays"):
        apply_techniques(Tied(), [Prune(amount=0.5, only=("last",))], run)
    said.clear()
    apply_techniques(Tied(), [Prune(amount=0.5, skip=("last",))], run)
    assert said[0] == "prune: table.weight left alone: it is also last.weight, which stays"


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_gradients_of_a_sparse_embedding_count_as_dense_ones_do(criterion):
    model, dense = Table(), Table()
    dense.load_state_dict(model.state_dict())
    dense.table.sparse = False
    one, other = (apply_techniques(net, [Prune(amount=0.5, criterion=criterion)], make_run()) for net in (model, dense))
    assert torch.equal(one.table.weight, other.table.weight)


@pytest.mark.parametrize("criterion", [Taylor(), Fisher(), Movement()])
def test_gradients_that_overflow_are_not_observed(criterion):
    model = nn.Linear(4, 2, bias=False)
    scorer = Scorer(criterion, model, make_run())
    for gradient in (torch.inf, 1.0, torch.nan):
        model.weight.grad = torch.ones_like(model.weight)
        model.weight.grad[1, 2] = gradient
        scorer.observe(model)
    alone = Scorer(criterion, model, make_run())
    model.weight.grad = torch.ones_like(model.weight)
    alone.observe(model)
    found, expected = (one.weight_scores("weight", model.weight) for one in (scorer, alone))
    assert torch.equal(found, expected)


def test_a_loss_whose_gradients_are_no_numbers_is_refused_rather_than_pruned_by_chance():
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, image):
            return (self.layer(image.flatten(1)) * 0).sqrt()

    with pytest.raises(ModelError, match="'taylor' sees no numbers in the gradients"):
        apply_techniques(Root(), [Prune(amount=0.5, criterion="taylor")], make_run())


@pytest.mark.parametrize("wrong", [False, True])
def test_rigl_exchanges_by_sparse_gradients_and_never_by_ones_that_are_no_numbers(wrong):
    model = nn.Embedding(8, 4, sparse=True)
    exchange = Exchange(every=1, share=0.5, start=0.0, end=1.0)
    masks = Rigl(model, {"weight": 0.5}, Singles(), Scorer(L1(), model, make_run()), whole=False, exchange=exchange)
    masks.grow(model, 1.0, make_run())
    before = masks.gone[0].clone()
    (model(torch.arange(8)).sum() * (torch.nan if wrong else 1.0)).backward()
    masks.observe(model, 0.1)
    assert masks.gone[0].sum() == 16
    assert torch.equal(masks.gone[0], before) == wrong


def test_squares_of_small_half_precision_gradients_are_not_zero():
    model = nn.Linear(4, 1, bias=False).half()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e-4, 2e-4, 3e-4, 4e-4]]))
    model.weight.grad = torch.full_like(model.weight, 1e-4)
    scorer = Scorer(Fisher(), model, make_run())
    scorer.observe(model)
    found = scorer.weight_scores("weight", model.weight)
    expected = 0.5 * model.weight.grad.double() ** 2 * model.weight.detach().double() ** 2
    assert found is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("granularity", ["block", "kernel"])
def test_small_half_precision_weights_are_ranked_by_their_norm(granularity):
    model = nn.Conv2d(4, 4, 3, bias=False).half()
    with torch.no_grad():
        model.weight.copy_(8e-5 + 5e-6 * torch.arange(16).flip(0).reshape(4, 4, 1, 1).expand(4, 4, 3, 3))
    technique = Prune(amount=0.5, granularity=granularity, block=(1, 9) if granularity == "block" else (4, 4))
    technique.apply(model, make_run())
    assert (model.weight == 0).flatten(2).all(2).flatten().tolist() == [False] * 8 + [True] * 8


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_distances_of_filters_in_half_precision_are_those_of_the_same_numbers_in_float32(kind):
    filters = torch.randn(5, 7).to(kind)
    torch.testing.assert_close(distances(filters), distances(filters.float()))


def test_what_criteria_watch_lies_where_the_layer_does():
    found = Inputs(nn.Sequential(nn.Linear(4, 4, device="meta")), "norm").of("0")
    assert found is not None
    assert found.device.type == "meta"


def test_scores_that_are_the_weight_itself_stay_as_they_are():
    model = nn.Sequential(nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight[0, :3] = 0
    before = model[0].weight.detach().clone()
    scorer = Scorer(Value(), model, make_run())
    WeightMasks(model, {"0.weight": 1 / 32}, Singles(), scorer, whole=False).grow(model, 1.0, make_run())
    assert torch.equal(model[0].weight, before)


def test_a_weight_that_is_zero_for_a_while_does_not_lose_what_its_movement_was():
    model = nn.Sequential(nn.Linear(8, 4))
    scorer = Scorer(Movement(), model, make_run())
    model[0].weight.grad = -model[0].weight.detach().clone()
    scorer.observe(model)
    before = scorer.seen.of("0.weight").clone()
    with torch.no_grad():
        model[0].weight[0, :3] = 0
    WeightMasks(model, {"0.weight": 1 / 32}, Singles(), scorer, whole=False).remove(model, 1.0)
    assert torch.equal(scorer.seen.of("0.weight"), before)


def test_blocks_are_chosen_before_a_training_could_tell_a_criterion_anything():
    with pytest.raises(ValidationError, match="'movement' knows nothing before the training, where blocks are chosen"):
        Prune(amount=0.5, granularity="depth", criterion="movement")


@pytest.mark.parametrize(
    "fields", [{"schedule": "iterative", "rounds": 2}, {"schedule": "progressive", "max_loss": 99}]
)
def test_rounds_may_take_every_block(fields):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Sequential(Residual(), Residual()), nn.Linear(16, 10))
    technique = Prune(amount=0.9, granularity="depth", criterion="ablation", **fields)
    found = apply_techniques(model, [technique, Epochs(epochs=1)], make_run())
    assert not any(isinstance(module, Residual) for module in found.modules())


@pytest.mark.parametrize("fields", [{"skip": ("encoder.layers.2",)}, {"only": ("encoder.layers.[12]",)}])
def test_numbers_that_change_from_round_to_round_are_no_names(fields):
    (field, patterns), *_ = fields.items()
    technique = Prune(amount=0.5, granularity="depth", schedule="iterative", **fields)
    with pytest.raises(ModelError, match=r"names some members of encoder\.layers, which get other numbers") as caught:
        apply_techniques(Encoder(), [technique, Epochs(epochs=1)], make_run())
    assert f"{patterns[0]!r} in `{field}`" in str(caught.value)
    once = apply_techniques(
        Encoder(), [Prune(amount=0.5, granularity="depth", schedule="one-shot", **fields)], make_run()
    )
    assert len(once.encoder.layers) < 4


def test_all_members_of_a_list_may_be_named_in_rounds():
    technique = Prune(amount=0.5, granularity="depth", schedule="iterative", rounds=2, only=("encoder",))
    found = apply_techniques(Encoder(), [technique, Epochs(epochs=1)], make_run())
    assert len(found.encoder.layers) == 2


def test_a_rewinding_whose_weights_no_training_has_reached_is_refused():
    class Impatient(Epochs):
        def plan(self, plan, run):
            return replace(
                super().plan(plan, run), patience=1, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0)
            )

    technique = Prune(amount=0.5, schedule="lottery", rewind=0.9, rounds=1)
    with pytest.raises(TrainingError, match="stopped before 90%") as caught:
        apply_techniques(make("mlp"), [technique, Impatient(epochs=10)], make_run())
    assert "lower `rewind`" in caught.value.mend


def test_the_reason_for_a_block_that_stays_does_not_follow_the_order_of_a_set():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Residual(), nn.Linear(16, 10))
    skip = ["2.two", "2", "2.one"]
    left = [find_blocks(model, make_run(), order)[1] for order in (skip, skip[::-1])]
    assert left[0] == left[1]
    assert "2 shall stay" in [entry.reason for entry in left[0]]


def test_a_network_without_weights_is_not_told_to_skip_less_where_nothing_is_skipped():
    with pytest.raises(ModelError) as caught:
        apply_techniques(nn.Flatten(), [Prune(amount=0.5)], make_run())
    assert not caught.value.mend
