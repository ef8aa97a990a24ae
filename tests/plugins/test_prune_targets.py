"""How many channels go for a share of the parameters, the MACs or the time."""

from __future__ import annotations

import pytest
import torch
from compress_prune.targets import CannotReach, Formula, cost_of, solved, solved_by_measuring, without
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from compress_core.channels.coupling import coupled_groups
from compress_core.channels.proof import proven
from compress_core.measure import counts
from tests.support import make, make_run


class Mixed(nn.Module):
    """A concatenation, a depthwise, a grouped and a transposed convolution, a bare parameter, a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(1, 6, 3, 2, 1, bias=False)
        self.norm, self.depth = nn.BatchNorm2d(14), nn.Conv2d(14, 14, 3, 1, 1, groups=14)
        self.three, self.four = nn.Conv2d(14, 12, 1), nn.Conv2d(12, 8, 3, 1, 1, groups=4)
        self.gamma = nn.Parameter(torch.full((1, 8, 1, 1), 0.5))
        self.wide, self.act = nn.ConvTranspose2d(8, 6, 2, 2), nn.PReLU(6)
        self.hidden, self.head = nn.Linear(6 * 64, 20), nn.Linear(20, 10)

    def forward(self, image):
        x = torch.cat([self.one(image), self.two(image)], 1)
        x = self.three(F.relu(self.depth(F.relu(self.norm(x)))))
        x = self.act(self.wide(self.four(F.relu(x)) * self.gamma))
        return self.head(F.relu(self.hidden(x.flatten(1))))


class Gram(nn.Module):
    """Multiplies the rows of a weight with each other: MACs that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 16, 3, 1, 1), nn.Linear(16, 10)

    def forward(self, image):
        rows = self.conv.weight.flatten(1)
        return self.head(F.relu(self.conv(image)).mean((2, 3))) * (rows @ rows.T).sum()


def groups_of(model, run):
    return proven(model, coupled_groups(model, run)[0], run)[0]


def real(model, groups, gone, of, run):
    return getattr(counts(without(model, groups, gone), run.example), of)


@pytest.mark.parametrize("of", ["parameters", "macs"])
@pytest.mark.parametrize("name", ["mlp", "conv", "mixed"])
def test_the_formula_counts_what_a_cut_network_has(name, of):
    run = make_run()
    model = Mixed() if name == "mixed" else make(name)
    groups = groups_of(model, run)
    cost = cost_of(model, groups, of, run)
    assert isinstance(cost, Formula)
    generator = torch.Generator().manual_seed(0)
    for share in (0.1, 0.4, 0.7):
        gone = []
        for group in groups:
            mask = torch.rand(group.blocks, group.size // group.blocks, generator=generator).argsort(1)
            gone.append((mask < int(share * mask.shape[1])).reshape(-1))
        assert cost(gone) == pytest.approx(real(model, groups, gone, of, run), abs=0.5)


def test_macs_that_belong_to_no_layer_are_counted_on_a_network_that_is_cut():
    run, model = make_run(), Gram()
    groups = groups_of(model, run)
    cost = cost_of(model, groups, "macs", run)
    assert not isinstance(cost, Formula)
    gone = [torch.arange(16) < 12]
    assert cost(gone) == real(model, groups, gone, "macs", run) == 4 * 64 * 9 + 4 * 4 * 9 // 2 + 4 * 10
    assert isinstance(cost_of(model, groups, "parameters", run), Formula)


def test_counting_leaves_the_network_as_it_is():
    run, model = make_run(), make("conv").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for of in ("parameters", "macs"):
        cost_of(model, groups_of(model, run), of, run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


networks = st.lists(st.tuples(st.integers(2, 40), st.integers(1, 100)), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(layers=networks, amount=st.floats(0.05, 0.95), step=st.sampled_from([1, 2, 4]))
def test_the_target_is_met_within_one_step_of_one_group(layers, amount, step):
    sizes = [size * step for size, _ in layers]

    def plan(level):
        return [torch.arange(size) < min(size - step, round(level * size / step) * step) for size in sizes]

    def cost(gone):
        return 50 + sum(each * int((~mask).sum()) for (_, each), mask in zip(layers, gone, strict=True))

    full, smallest = cost(plan(0.0)), cost(plan(1.0))
    try:
        found = solved(plan, cost, amount, full)
    except CannotReach as error:
        assert error.most == pytest.approx(1 - smallest / full)
        assert error.most < amount
        return
    missed = (1 - amount) * full - cost(found)
    assert missed >= -1e-6
    assert missed < max(step * each for _, each in layers)


def test_a_time_is_met_with_few_measurements_and_none_twice():
    asked = []

    def ratio(gone):
        asked.append(int(gone[0].sum()))
        return 1 - 0.9 * asked[-1] / 256

    found, measured = solved_by_measuring(lambda level: [torch.arange(256) < round(level * 255)], ratio, 0.5)
    assert measured == ratio(found) <= 0.5
    assert measured == pytest.approx(0.5, abs=0.02)
    assert len(set(asked)) == len(asked) - 1 <= 8


def test_a_time_that_even_the_smallest_network_needs_is_refused_with_what_can_be_reached():
    with pytest.raises(CannotReach) as caught:
        solved_by_measuring(
            lambda level: [torch.arange(16) < round(level * 15)], lambda gone: 1 - 0.02 * int(gone[0].sum()), 0.5
        )
    assert caught.value.most == pytest.approx(0.3)
