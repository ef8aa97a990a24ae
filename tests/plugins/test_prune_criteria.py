"""The criteria of pruning, each against its equation, a property that its authors give, or another library."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import ClassVar

import compress_prune
import pytest
import torch
from compress_prune import Prune
from compress_prune.choosing import channel_sums, importance
from compress_prune.criteria import BUILT_IN, Movement
from compress_prune.observing import Means, Scorer, backward_passes
from compress_prune.scoring import distances, second_order
from sklearn.metrics import pairwise_distances
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.catalog import catalog
from compress_core.channels.coupling import coupled_groups
from compress_core.errors import ModelError, PluginError, RecipeError
from compress_core.order import check_together
from compress_core.parts import Criterion
from compress_core.testing import Epochs, checks_for
from compress_core.weights import weights
from tests.core.fakes import fake_catalog, point
from tests.support import make, make_run

NAMES = [kind.name for kind in BUILT_IN]


class Net(nn.Module):
    """Gates on the hidden units, so that the loss can be derived by what a whole unit lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 12, bias=False), nn.Linear(12, 10, bias=False)
        self.rows = self.columns = torch.ones(12)

    def forward(self, image):
        return self.second(F.relu(self.first(image.flatten(1)) * self.rows) * self.columns)


def trained(name: str = "mlp", epochs: int = 4) -> nn.Module:
    return apply_techniques(make(name), [Epochs(epochs=epochs)], make_run())


def scorer_of(name: str, model: nn.Module, run) -> Scorer:
    scorer = Scorer(catalog().criteria[name](), model, run)
    scorer.read(model, run)
    return scorer


def mean_gradients(model, run, change=lambda gradient: gradient):
    """Over the calibration batches, by torch.autograd.grad."""
    names = [place.name for place in weights(model)]
    tensors = [model.get_parameter(name) for name in names]
    found = [
        [change(one) for one in torch.autograd.grad(run.task.loss(model(batch["image"]), batch), tensors)]
        for batch in run.calibration()
    ]
    return dict(zip(names, (torch.stack(each).mean(0) for each in zip(*found, strict=True)), strict=True))


def test_taylor_is_gradient_times_weight():
    model, run = trained(), make_run()
    scorer = scorer_of("taylor", model, run)
    for name, gradient in mean_gradients(model, run).items():
        weight = model.get_parameter(name)
        expected = (gradient * weight).abs()
        assert torch.allclose(scorer.criterion.pooled(scorer.weight_scores(name, weight)), expected, atol=1e-7)


def test_taylor_of_a_channel_is_the_derivative_by_a_gate_on_it():
    run = make_run()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
    (group,) = coupled_groups(model, run)[0]
    found = importance(model, group, scorer_of("taylor", model, run))
    gated = deepcopy(model)
    gated.rows = gated.columns = gate = torch.ones(12, requires_grad=True)
    slopes = [torch.autograd.grad(run.task.loss(gated(batch["image"]), batch), gate)[0] for batch in run.calibration()]
    # One gate on what is written and one on what is read, so the unit counts with both of its sides.
    assert torch.allclose(found, torch.stack(slopes).mean(0).abs().double(), atol=1e-6)


def test_fisher_is_half_the_mean_square_of_the_gradient_times_the_weight():
    model, run = trained(), make_run()
    scorer = scorer_of("fisher", model, run)
    for name, square in mean_gradients(model, run, torch.square).items():
        weight = model.get_parameter(name)
        assert torch.allclose(scorer.weight_scores(name, weight), 0.5 * square * weight**2, rtol=1e-4, atol=1e-10)


def test_the_second_order_is_exact_for_a_quadratic_loss_at_its_minimum():
    weight, curvature = torch.randn(50), torch.rand(50) + 0.1
    loss = [0.5 * (curvature * (point - weight) ** 2).sum() for point in weight.repeat(50, 1) * (1 - torch.eye(50))]
    assert torch.allclose(second_order(weight, curvature), torch.stack(loss), rtol=1e-4)


def test_means_over_the_first_observations_are_plain_and_run_later():
    model = nn.Linear(3, 2, bias=False)
    means = Means(model)
    terms = torch.randn(14, 2, 3)
    for count, term in enumerate(terms, 1):
        model.weight.grad = term
        means.add(model, lambda weight, gradient: gradient)
        if count == 10:
            assert torch.allclose(means.of("weight"), terms[:10].mean(0), atol=1e-6)
    expected = terms[:10].mean(0)
    for term in terms[10:]:
        expected = 0.9 * expected + 0.1 * term
    assert torch.allclose(means.of("weight"), expected, atol=1e-6)


def test_movement_adds_up_how_far_training_moves_a_weight_from_zero():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 0.1, -2.0, -0.1]]))
    criterion = Movement()
    state = criterion.begin(model, make_run())
    rate, start = 0.01, model.weight.detach().clone()
    for _ in range(5):
        model.weight.grad = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
        criterion.observe(model, state)
        with torch.no_grad():
            model.weight -= rate * model.weight.grad
    scores = criterion.weight_scores("weight", model.weight, state)
    assert (scores.sign() == (model.weight.abs() - start.abs()).sign()).all()
    assert int(scores.argmin()) == 0  # large, but on its way to zero
    assert scores[0, 2] > scores[0, 1] > 0 > scores[0, 3]


def test_movement_keeps_what_training_moves_away_from_zero():
    run = make_run()
    start = make("mlp")
    pruned = apply_techniques(start, [Prune(amount=0.5, criterion="movement"), Epochs(epochs=3)], run)
    for name in (place.name for place in weights(pruned)):
        weight = pruned.get_parameter(name)
        assert int((weight == 0).sum()) == round(0.5 * weight.numel())
        grew = weight.abs() > start.get_parameter(name).abs()
        assert grew[weight != 0].float().mean() > 0.6


def test_chance_follows_the_seed():
    model = make("mlp")
    one, same, other = (
        apply_techniques(model, [Prune(amount=0.5, criterion="random")], make_run(seed=seed)) for seed in (1, 1, 2)
    )
    gone = [net.layers[1].weight == 0 for net in (one, same, other)]
    assert torch.equal(gone[0], gone[1])
    assert abs(float((gone[0] & gone[2]).float().mean()) - 0.25) < 0.03


def test_by_scale_the_channels_with_the_smallest_factors_go():
    model = make("conv")
    with torch.no_grad():
        model.blocks[0].bn1.weight.copy_(torch.linspace(-1, 1, 16))
    small = apply_techniques(model, [Prune(amount=0.5, granularity="channel", criterion="scale")], make_run())
    stay = torch.linspace(-1, 1, 16).abs().argsort()[8:].sort().values
    assert torch.equal(small.blocks[0].bn1.weight, model.blocks[0].bn1.weight[stay])


def test_l1_on_scales_makes_them_small_in_training_and_slimming_removes_those():
    from compress_tune import Tune

    run = make_run()
    tune = Tune(epochs=8, optimizer="sgd", learning_rate=0.1, batch_size=32, l1=0.02, l1_on="scales")
    sparse = apply_techniques(make("conv"), [tune], run)
    scales = torch.cat([sparse.blocks[i].bn1.weight.abs() for i in (0, 1)])
    assert int((scales < 0.05).sum()) >= 15  # they begin at 1
    cut = {"amount": 0.4, "granularity": "channel", "allocation": "global"}
    after = [
        run.evaluate(apply_techniques(sparse, [Prune(**cut, criterion=name)], run)).value
        for name in ("scale", "random")
    ]
    assert after[0] > after[1] + 0.1
    together = apply_techniques(make("conv"), [Prune(**cut, criterion="scale"), tune], run)
    assert run.evaluate(together).value > 0.8
    assert sum(p.numel() for p in together.parameters()) < 0.75 * sum(p.numel() for p in sparse.parameters())


def test_a_geometric_median_is_found_as_by_scikit_learn_and_goes_although_it_is_large():
    filters = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor(pairwise_distances(filters.numpy())).sum(1)
    assert torch.allclose(distances(filters), expected.float(), rtol=1e-4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10))
    with torch.no_grad():
        model[1].weight.copy_(10 + torch.tensor([[-4.0], [4.0], [0.0], [-3.0], [3.0]]) * torch.ones(5, 64))
    technique = Prune(amount=0.2, granularity="channel", criterion="geometric-median")
    small = apply_techniques(model, [technique], make_run())
    assert small[1].weight[:, 0].tolist() == [6.0, 14.0, 7.0, 13.0]


@pytest.mark.parametrize("criterion", ["activation", "apoz"])
def test_a_unit_that_is_seldom_alive_goes(criterion):
    run = make_run()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([1.0, 1.0, 1.0, -50.0, 1.0, 1.0]))
        model[1].weight[3] *= 20  # by magnitude it would stay
    images = torch.cat([batch["image"] for batch in run.calibration()])
    seen = F.relu(model[1](images.flatten(1)))
    expected = seen.mean(0) if criterion == "activation" else 1 - (seen <= 0).float().mean(0)
    (group,) = coupled_groups(model, run)[0]
    found = importance(model, group, scorer_of(criterion, model, run))
    assert torch.allclose(found.float(), expected, atol=1e-5)
    small = apply_techniques(model, [Prune(amount=1 / 6, granularity="channel", criterion=criterion)], run)
    assert torch.equal(small[1].weight, model[1].weight[[0, 1, 2, 4, 5]])


def test_what_a_weight_multiplies_counts_by_its_norm():
    model, run = make("conv"), make_run()
    scorer = scorer_of("wanda", model, run)
    features = run.features(model, ["blocks.0.conv1", "head"])
    conv = torch.cat([values for (values,) in features["blocks.0.conv1"].inputs])
    expected = model.blocks[0].conv1.weight.abs() * conv.square().mean((0, 2, 3)).sqrt()[None, :, None, None]
    found = scorer.weight_scores("blocks.0.conv1.weight", model.blocks[0].conv1.weight)
    assert torch.allclose(found, expected, rtol=1e-4)
    linear = torch.cat([values for (values,) in features["head"].inputs])
    expected = model.head.weight.abs() * linear.square().mean(0).sqrt()
    assert torch.allclose(scorer.weight_scores("head.weight", model.head.weight), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(8, 12, 3, groups=4), nn.ConvTranspose2d(8, 12, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv1d(8, 12, 2)],
    ids=["grouped", "transposed", "depthwise", "one-axis"],
)
def test_inputs_of_every_convolution_find_their_weights(layer):
    """A weight matters by its input's norm: with one input alone, only the weights that read it have a score."""
    from compress_prune.observing import Inputs

    state = Inputs(nn.Sequential(layer), "norm")
    state.of("0").copy_(F.one_hot(torch.tensor(5), 8))
    factor = (state.factor("0.weight", layer.weight) * torch.ones_like(layer.weight)).bool()
    image = torch.zeros(1, 8, *[4] * (layer.weight.ndim - 2))
    image[:, 5] = 1
    (gradient,) = torch.autograd.grad(layer(image).square().sum(), layer.weight)
    assert torch.equal(gradient != 0, factor)


@pytest.mark.parametrize(("side", "groups"), [("out", 1), ("in", 1), ("out", 2), ("in", 2)])
def test_sums_over_channels_are_those_of_each_channel_by_itself(side, groups):
    layer = nn.Conv2d(4, 6, 3, groups=groups)
    found = channel_sums(layer, side, layer.weight.detach())
    image = torch.ones(1, 4, 3, 3)
    for channel in range(len(found)):
        alone = torch.zeros_like(image)
        alone[:, channel if side == "in" else slice(None)] = 1
        out = F.conv2d(alone, layer.weight, groups=groups).flatten()
        assert torch.allclose(found[channel], out.sum() if side == "in" else out[channel], atol=1e-5)


def test_gradients_are_measured_without_leaving_a_trace():
    model, run = make("conv"), make_run()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.train()
    before = deepcopy(model.state_dict())
    passes = [model.stem.weight.grad.abs().sum() > 0 for _ in backward_passes(model, run)]
    assert all(passes) and len(passes) == 8
    assert not model.stem.weight.requires_grad and model.stem.weight.grad is None
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("criterion", NAMES)
@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_every_criterion_removes_exactly_what_is_asked_or_says_that_it_cannot(criterion, granularity):
    kind = catalog().criteria[criterion]
    if granularity == "weight" and not kind.scores_weights():
        with pytest.raises(ValueError, match=r"rank.*taylor"):
            Prune(amount=0.5, criterion=criterion)
        return
    techniques = [Prune(amount=0.5, criterion=criterion, granularity=granularity), Epochs(epochs=1)]
    pruned = apply_techniques(make("conv"), techniques, make_run())
    if granularity == "channel":
        assert (pruned.stem.out_channels, pruned.blocks[1].conv2.out_channels) == (8, 16)
    else:
        for place in weights(pruned):
            assert int((place.parameter == 0).sum()) == round(0.5 * place.parameter.numel())


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "wanda", "l2"])
def test_every_criterion_of_weights_says_more_than_chance(criterion):
    model, run = trained(epochs=6), make_run()
    found = [
        run.evaluate(apply_techniques(model, [Prune(amount=0.7, criterion=name, allocation="global")], run)).value
        for name in (criterion, "random")
    ]
    assert found[0] > found[1] + 0.1


def test_layers_without_a_score_are_left_alone_by_name():
    said: list[str] = []
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 10)
    )
    technique = Prune(amount=0.5, granularity="channel", criterion="scale")
    small = apply_techniques(model, [technique], make_run(teller=said.append))
    assert (small[0].out_channels, small[3].out_channels) == (4, 6)
    assert "the channels of 3 are left alone: the criterion `scale` has no score for them" in said[0]
    with pytest.raises(ModelError, match="`scale` has no score"):
        apply_techniques(make("mlp"), [technique], make_run())


def test_a_criterion_that_learns_from_training_is_refused_without_it():
    with pytest.raises(RecipeError, match="does nothing without training"):
        check_together([Prune(amount=0.5, criterion="movement")], teacher=False)
    check_together([Prune(amount=0.5, criterion="movement"), Epochs(epochs=1)], teacher=False)


class Odd(Criterion):
    """Scores convolutions only, as integers; and of a wrong shape if it is asked to."""

    name = "odd"
    shape: ClassVar[tuple[int, ...]] = ()

    def weight_scores(self, name, weight, state):
        scores = (weight * 1e6).int().abs()
        return (scores.reshape(self.shape) if self.shape else scores) if weight.ndim == 4 else None


def with_criterion(monkeypatch, kind):
    found = replace(catalog(), criteria={**catalog().criteria, kind.name: kind})
    for module in (compress_prune, compress_prune.fitting, compress_prune.conditions):
        monkeypatch.setattr(module, "catalog", lambda: found)


def test_weights_without_a_score_are_left_alone_by_name(monkeypatch):
    with_criterion(monkeypatch, Odd)
    said: list[str] = []
    model = make("conv")
    pruned = apply_techniques(model, [Prune(amount=0.5, criterion="odd")], make_run(teller=said.append))
    assert said[0] == "prune: head.weight left alone: the criterion `odd` has no score for it"
    assert torch.equal(pruned.head.weight, model.head.weight)
    assert int((pruned.stem.weight == 0).sum()) == 72
    with pytest.raises(ModelError, match="`odd` has no score for it"):
        apply_techniques(make("mlp"), [Prune(amount=0.5, criterion="odd")], make_run())


def test_scores_of_a_wrong_shape_are_the_fault_of_their_plugin(monkeypatch):
    with_criterion(monkeypatch, Odd)
    monkeypatch.setattr(Odd, "shape", (-1,))
    for granularity in ("weight", "channel"):
        with pytest.raises(PluginError, match=r"'odd' gives scores of shape \(\d+,\) for .*, which has \("):
            apply_techniques(make("conv"), [Prune(amount=0.5, criterion="odd", granularity=granularity)], make_run())


def test_a_criterion_of_another_plugin_is_found_by_name_and_made_a_part(monkeypatch):
    fakes = fake_catalog(point("prune", "compress_prune"))
    for module in (compress_prune, compress_prune.fitting, compress_prune.conditions):
        monkeypatch.setattr(module, "catalog", lambda: fakes)
    technique = Prune(amount=0.5, criterion="last")
    assert [type(part).__module__ for part in technique.parts] == ["tests.core.fakes"]
    pruned = apply_techniques(make("mlp"), [technique], make_run())
    row = pruned.layers[1].weight.flatten()
    assert (row[:1024] == 0).all() and (row[1024:] != 0).all()
    small = apply_techniques(make("mlp"), [Prune(amount=0.5, criterion="last", granularity="channel")], make_run())
    assert torch.equal(small.layers[1].weight, make("mlp").layers[1].weight[16:])


CHOICES = [
    (Prune(amount=0.5, criterion="taylor", allocation="global"), ("transformer", "lstm")),
    (Prune(amount=0.5, criterion="movement", schedule="surgery"), ("conv", "lstm")),
    (Prune(amount=0.5, criterion="wanda"), ("transformer", "lstm")),
    (Prune(amount=0.5, criterion="fisher", granularity="kernel"), ("conv",)),
    (Prune(amount=0.5, criterion="activation", granularity="channel"), ("transformer", "mlp")),
    (Prune(amount=0.5, criterion="random", schedule="rigl", every=3, allocation="erk"), ("mlp",)),
    (Prune(pattern="2:4"), ("transformer",)),
]


@pytest.mark.parametrize(
    "check",
    [
        check
        for technique, nets in CHOICES
        for check in checks_for(technique, nets=nets, compose=False, export=False)
        if "repeats" not in check.name and check.name not in {"parameters", "imports"}
    ],
    ids=str,
)
def test_choices_keep_the_promises_of_techniques(check):
    assert check() is None


def test_a_pruned_network_is_exported(tmp_path):
    from compress_export import Onnx

    run = make_run()
    pruned = apply_techniques(make("conv"), [Prune(amount=0.5, granularity="channel", criterion="taylor")], run)
    Onnx().export(pruned, tmp_path, run.example)
    output = Onnx().load(tmp_path, 1)(*run.example[0])
    assert torch.allclose(output, pruned(*run.example[0]), atol=1e-4)
