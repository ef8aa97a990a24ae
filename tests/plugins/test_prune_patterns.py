"""Weights that go in patterns, blocks and kernels, and how many of each layer."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest
import torch
from compress_prune import Prune
from compress_prune.allocating import erdos_renyi
from compress_prune.notation import parsed
from compress_prune.patterns import Blocks, Kernels, OfEach
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.ao.pruning import WeightNormSparsifier

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ModelError
from compress_core.masks import masked_tensors
from compress_core.testing import Epochs
from compress_core.weights import weights
from tests.plugins.test_prune import Watch
from tests.support import make, make_run


def by_torch(weight, **fields):
    """What torch's own sparsifier makes of a linear layer's weight."""
    layer = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(weight)
    sparsifier = WeightNormSparsifier(**fields)
    sparsifier.prepare(layer, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    sparsifier.squash_mask()
    return layer[0].weight


def inputs_last(weight):
    return weight.detach().movedim(1, -1)


def test_two_of_four_agree_with_torch():
    model = make("mlp")
    pruned = apply_techniques(model, [Prune(pattern="2:4")], make_run())
    for place in weights(model):
        theirs = by_torch(
            place.parameter.detach(), sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2, norm=2
        )
        assert torch.equal(pruned.get_parameter(place.name), theirs)


@pytest.mark.parametrize(("pattern", "keep", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("1:8", 1, 8), ("5:8", 5, 8)])
def test_of_every_m_inputs_the_n_largest_stay_and_what_does_not_divide_is_named(pattern, keep, of):
    said: list[str] = []
    model = make("conv")
    pruned = apply_techniques(model, [Prune(pattern=pattern)], make_run(teller=said.append))
    for place in weights(model):
        before, after = inputs_last(place.parameter), inputs_last(pruned.get_parameter(place.name))
        if place.name == "stem.weight":
            assert torch.equal(before, after)
            continue
        groups = before.reshape(-1, of)
        wanted = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.abs().topk(keep).indices, True)
        assert torch.equal(after.reshape(-1, of) != 0, wanted)
    assert said[0] == f"prune: stem.weight left alone: 1 inputs are no multiple of {of}"


def test_a_pattern_grows_while_training_and_holds_at_the_end_and_after():
    seen = []
    run = make_run()
    pruned = apply_techniques(make("mlp"), [Prune(pattern="1:4"), Epochs(epochs=3), Watch(seen=seen)], run)
    counts = []
    for (_, before), (progress, after) in pairwise(seen):
        for old, new in zip(before, after, strict=True):
            assert (new | ~old).all()
            assert int(new.reshape(-1, 4).sum(1).max()) <= 3
            if progress >= 0.5:
                assert (new.reshape(-1, 4).sum(1) == 3).all()
        counts.append(int(after[0].sum()))
    assert len(set(counts)) > 10
    later = apply_techniques(pruned, [Epochs(epochs=1)], run)
    assert ((later.layers[1].weight.reshape(-1, 4) == 0).sum(1) == 3).all()


def test_a_network_of_which_nothing_divides_is_refused():
    with pytest.raises(ModelError, match="64 inputs are no multiple of 7"):
        apply_techniques(make("mlp"), [Prune(pattern="3:7")], make_run())


@pytest.mark.parametrize("pattern", ["4:2", "2:2", "0:4", "2/4", "a:b", "2:", "-1:4"])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(ValueError, match="as in `2:4`"):
        parsed(pattern)


@pytest.mark.parametrize("block", [(4, 4), (1, 8), (8, 2)])
def test_blocks_agree_with_torch(block):
    model = make("mlp")
    pruned = apply_techniques(model, [Prune(amount=0.5, granularity="block", block=block)], make_run())
    for name in ("layers.1.weight", "layers.3.weight"):
        zeros = prod(block)
        theirs = by_torch(
            model.get_parameter(name).detach(),
            sparsity_level=0.5,
            sparse_block_shape=block,
            zeros_per_block=zeros,
            norm=2,
        )
        assert torch.equal(pruned.get_parameter(name), theirs)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), height=st.integers(1, 5), width=st.integers(2, 5), data=st.data()
)
def test_blocks_cover_every_weight_once_even_at_the_edges(rows, columns, height, width, data):
    sets = Blocks(rows=height, columns=width)
    shape = (rows, columns)
    one = data.draw(st.integers(0, sets.total(shape) - 1))
    mask = torch.zeros(sets.total(shape), dtype=torch.bool)
    mask[one] = True
    down, across = divmod(one, -(-columns // width))
    expected = torch.zeros(shape, dtype=torch.bool)
    expected[down * height : (down + 1) * height, across * width : (across + 1) * width] = True
    assert torch.equal(sets.spread(mask, shape), expected)
    values = torch.rand(shape)
    assert torch.allclose(sets.mean(values).flatten()[one], values[expected].mean())
    assert torch.equal(sets.whole(expected).flatten(), mask)


def test_kernels_go_by_their_norm_and_linear_layers_are_left_alone_by_name():
    said: list[str] = []
    model = make("conv")
    pruned = apply_techniques(
        model, [Prune(amount=0.25, granularity="kernel", criterion="l1")], make_run(teller=said.append)
    )
    norms = model.blocks[0].conv1.weight.abs().sum((2, 3)).flatten()
    expected = torch.zeros(256, dtype=torch.bool)
    expected[norms.argsort()[:64]] = True
    kernels = (pruned.blocks[0].conv1.weight == 0).flatten(2)
    assert torch.equal(kernels.all(2).flatten(), expected)
    assert torch.equal(kernels.any(2), kernels.all(2))
    assert torch.equal(pruned.head.weight, model.head.weight)
    assert said[0] == "prune: head.weight left alone: it has no kernels"
    with pytest.raises(ModelError, match="has no kernels"):
        apply_techniques(make("mlp"), [Prune(amount=0.5, granularity="kernel")], make_run())


@pytest.mark.parametrize(
    "fields",
    [{"granularity": "block", "amount": 0.5}, {"granularity": "kernel", "amount": 0.5}, {"pattern": "2:4"}],
    ids=["block", "kernel", "pattern"],
)
def test_sets_that_went_stay_gone_through_training_and_artifacts(fields, tmp_path):
    run = make_run()
    pruned = apply_techniques(make("conv"), [Prune(**fields), Epochs(epochs=2)], run)
    save(pruned, tmp_path / "model", factory="tests.support:ConvNet")
    loaded = load(tmp_path / "model", factory="tests.support:ConvNet")
    assert masked_tensors(loaded) == masked_tensors(pruned)
    trained = apply_techniques(loaded, [Epochs(epochs=1)], run)
    for name in masked_tensors(pruned):
        before, after = pruned.get_parameter(name) == 0, trained.get_parameter(name) == 0
        assert torch.equal(before, after)
        assert float(before.float().mean()) == pytest.approx(0.5, abs=0.1)  # blocks at an edge are smaller


def test_a_set_that_is_zero_already_counts_and_one_that_is_half_zero_does_not():
    weight = torch.ones(2, 2, 2, 2)
    weight[0, 0] = 0
    weight[0, 1, 0] = 0
    none = torch.zeros(weight.shape, dtype=torch.bool)
    scores = Kernels().scores(weight.square(), torch.sqrt, weight == 0, none)
    assert scores.flatten().argsort().tolist()[:2] == [0, 1]
    assert float(scores[0, 0]) == torch.finfo(torch.float32).min
    gone = none.clone()
    gone[1, 1] = True
    assert Kernels().scores(weight.square(), torch.sqrt, weight == 0, gone).argmin() == 3


def test_what_stays_in_a_pattern_is_never_chosen():
    scores = OfEach(keep=1, of=3).scores(
        torch.tensor([[3.0, 1.0, 2.0]]), lambda total: total, *torch.zeros(2, 1, 3, dtype=torch.bool)
    )
    assert scores.tolist() == [[torch.inf, 1.0, 2.0]]


@settings(max_examples=100, deadline=None)
@given(
    shapes=st.lists(
        st.one_of(
            st.tuples(st.integers(1, 512), st.integers(1, 512)),
            st.tuples(st.integers(1, 128), st.integers(1, 128), st.just(3), st.just(3)),
        ),
        min_size=1,
        max_size=8,
    ),
    share=st.floats(0.01, 0.99),
)
def test_erk_keeps_the_total_and_is_proportional_where_it_is_not_whole(shapes, share):
    counts = [prod(shape) for shape in shapes]
    shares = erdos_renyi(shapes, counts, share)
    densities = [1 - one for one in shares]
    total = sum(density * count for density, count in zip(densities, counts, strict=True))
    assert total == pytest.approx((1 - share) * sum(counts))
    scale = [sum(shape) / prod(shape) for shape in shapes]
    ratios = [density / one for density, one in zip(densities, scale, strict=True)]
    free = [ratio for ratio, density in zip(ratios, densities, strict=True) if density < 1]
    assert free == pytest.approx([free[0]] * len(free))
    whole = [ratio for ratio, density in zip(ratios, densities, strict=True) if density == 1]
    assert all(ratio <= free[0] * (1 + 1e-9) for ratio in whole)


def test_without_kernels_it_is_mocanus_allocation():
    """LeNet-300-100 at 2 %: eps (n_in + n_out) / (n_in n_out) with eps = 0.02 * 266,200 / 1,594."""
    shapes = [(300, 784), (100, 300), (10, 100)]
    shares = erdos_renyi(shapes, [prod(shape) for shape in shapes], 0.98)
    eps = 0.02 * 266_200 / (1084 + 400 + 110)
    assert [1 - share for share in shares] == pytest.approx([eps * 1084 / 235_200, eps * 400 / 30_000, eps * 0.11])


def test_erk_prunes_wide_layers_more_and_the_whole_network_as_asked():
    model = make("conv")
    pruned = apply_techniques(model, [Prune(amount=0.8, allocation="erk")], make_run())
    densities = {place.name: float((place.parameter != 0).float().mean()) for place in weights(pruned)}
    assert densities["stem.weight"] == 1
    assert densities["blocks.1.conv2.weight"] < densities["blocks.0.conv1.weight"] < densities["head.weight"]
    total = sum(place.parameter.numel() for place in weights(pruned))
    zeros = sum(int((place.parameter == 0).sum()) for place in weights(pruned))
    assert abs(zeros - 0.8 * total) <= len(densities) / 2


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_in_float64_equal_weights_are_told_apart_that_float32_would_confuse(allocation):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(1 + torch.arange(640, dtype=torch.float64).flip(0).reshape(10, 64) * 1e-12)
    run = make_run()
    masks = Prune(amount=0.1, allocation=allocation).begin(model, run)
    masks.grow(model, 1.0, run)
    assert (model[1].weight.flatten() == 0).nonzero().flatten().tolist() == list(range(576, 640))
