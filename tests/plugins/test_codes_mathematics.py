"""The mathematics of codes against closed forms, brute force, published equations and another library."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from compress_codes.binary import BinaryCoder
from compress_codes.coding import rows_of
from compress_codes.kmeans import Book, BookCoder, codebook, kmeans
from compress_codes.packing import packed_bytes, unpack
from compress_codes.plain import Alpha, PlainCoder
from compress_codes.powers import PowerCoder, portion_at, power_levels
from compress_codes.ternary import TernaryCoder, TrainedTernaryCoder, ternarized
from compress_codes.uniform import UniformCoder, best_share, grid_of, uniform_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(coder, weight, gradient):
    """What the real weights get when the coded ones get `gradient`."""
    weight = weight.clone().requires_grad_()
    coder.coded(weight).backward(gradient)
    return weight.grad


def cost(values, levels):
    return float((values.unsqueeze(1) - levels).square().amin(1).sum())


def optimal_clusters(values, clusters):
    """The least cost of k-means in one dimension: clusters are runs of sorted values (Wang and Song 2011)."""
    ordered = sorted(values.tolist())
    size = len(ordered)

    def run(first, end):
        part = ordered[first:end]
        mean = sum(part) / len(part)
        return sum((value - mean) ** 2 for value in part)

    best = [0.0] + [math.inf] * size
    for _ in range(clusters):
        best = [min([best[end], *(best[first] + run(first, end) for first in range(end))]) for end in range(size + 1)]
    return best[size]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=3, max_size=14), st.integers(1, 4), st.sampled_from(["linear", "density"])
)
def test_k_means_is_a_fixed_point_and_never_below_the_optimum(numbers, clusters, init):
    values = torch.tensor(numbers, dtype=torch.float64)
    found = kmeans(values, clusters, init)
    assert len(found) <= clusters
    assert cost(values, found) >= optimal_clusters(values, clusters) - 1e-9
    nearest = torch.bucketize(values, (found[1:] + found[:-1]) / 2)
    for place, level in enumerate(found):
        assert level == pytest.approx(float(values[nearest == place].mean()), abs=1e-9)


def test_k_means_finds_the_optimum_of_values_in_clear_clusters():
    values = torch.cat([normal(5, seed=seed).double() * 0.1 + centre for seed, centre in enumerate((-4, -1, 2, 5))])
    for init in ("linear", "density"):
        assert cost(values, kmeans(values, 4, init)) == pytest.approx(optimal_clusters(values, 4), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_k_means_of_normal_weights_from_even_quantiles_is_near_the_optimum(seed):
    values = normal(48, seed=seed).double()
    assert cost(values, kmeans(values, 6, "density")) <= 1.25 * optimal_clusters(values, 6)


@pytest.mark.parametrize("clusters", [3, 8, 16])
def test_k_means_ends_where_sklearn_s_ends_from_the_same_start(clusters):
    values = torch.rand(900, generator=torch.Generator().manual_seed(1)).double()
    start = torch.linspace(float(values.min()), float(values.max()), clusters, dtype=torch.float64)
    theirs = KMeans(clusters, init=start.numpy().reshape(-1, 1), n_init=1, tol=0, max_iter=1000)
    theirs.fit(values.numpy().reshape(-1, 1))
    wanted = torch.from_numpy(theirs.cluster_centers_).flatten().sort().values
    torch.testing.assert_close(kmeans(values, clusters), wanted, rtol=0, atol=1e-12)


def test_zero_is_a_level_if_a_weight_is_zero():
    weight = normal(200).where(normal(200, seed=1) > 0, torch.zeros(200)) + 0.0
    levels = codebook(weight, 8)
    assert len(levels) == 8
    assert (levels == 0).sum() == 1
    assert torch.equal(codebook(torch.zeros(5), 4), torch.zeros(1))


def fitted(weight, clusters=5):
    coder = BookCoder(Book(clusters), (clusters - 1).bit_length())
    coder.settle([nn.Parameter(weight)])
    return coder


def test_the_gradient_of_a_centroid_is_the_sum_of_those_of_its_weights():
    """Han et al. 2016, eq. 3."""
    weight, gradient = normal(6, 20), normal(6, 20, seed=1)
    coder = fitted(weight)
    places = (weight.unsqueeze(2) - coder.book.levels.detach()).abs().argmin(2)
    coder.coded(weight).backward(gradient)
    wanted = torch.stack([gradient[places == place].sum() for place in range(5)])
    torch.testing.assert_close(coder.book.levels.grad, wanted)


def test_the_level_of_zero_gets_no_gradient():
    weight = normal(6, 20)
    weight[normal(6, 20, seed=2) > 0.3] = 0.0
    coder = fitted(weight)
    coder.coded(weight).sum().backward()
    assert coder.book.levels.grad[coder.book.levels == 0] == 0
    assert (coder.book.levels.grad != 0).sum() == 4


def test_two_weights_of_one_book_sum_their_gradients():
    first, second = normal(30), normal(40, seed=1)
    book = Book(4)
    coders = [BookCoder(book, 2), BookCoder(book, 2)]
    coders[0].settle([nn.Parameter(first), nn.Parameter(second)])
    (coders[0].coded(first).sum() + 3 * coders[1].coded(second).sum()).backward()
    counts = [torch.bincount(book.places(weight), minlength=4) for weight in (first, second)]
    assert book.levels.grad.tolist() == (counts[0] + 3 * counts[1]).tolist()


def ternary_error(size, threshold):
    """The squared error of the best scale for this threshold."""
    large = size > threshold
    scale = size[large].mean()
    return float((size - scale * large).square().sum())


def test_twn_has_its_closed_form():
    """Li et al. 2016, eq. 5 and 6."""
    rows = torch.tensor([[1.0, -2.0, 0.5, -0.1], [0.2, 0.2, -0.2, 0.2]])
    signs, scale = ternarized(rows)
    assert signs.tolist() == [[1, -1, 0, 0], [1, 1, -1, 1]]  # thresholds 0.63 and 0.14
    assert scale.tolist() == pytest.approx([1.5, 0.2])


def test_twn_s_threshold_is_nearly_the_best_for_normal_weights():
    weight = normal(1, 4000)
    size = weight.abs().flatten()
    least = min(ternary_error(size, threshold) for threshold in torch.linspace(0, 2.5, 400))
    signs, scale = ternarized(weight)
    found = float((weight - scale * signs).square().sum())
    assert least * (1 - 1e-6) <= found <= 1.01 * least
    assert ternary_error(size, 0.3 * size.mean()) > 1.1 * least


def test_twn_s_scale_is_the_best_for_its_signs():
    weight = normal(3, 50)
    signs, scale = ternarized(weight)
    torch.testing.assert_close(scale, (weight * signs).sum(1) / signs.square().sum(1))


def test_twn_leaves_removed_channels_out_of_its_means():
    weight = normal(8, 10)
    more = torch.cat([weight, torch.zeros(8, 10)])
    coder = TernaryCoder(granularity="tensor")
    assert torch.equal(coder.coding(more).weight()[:8], coder.coding(weight).weight())
    gradient = normal(8, 10, seed=1)
    assert torch.equal(gradients(coder, weight, gradient), gradient)


def test_ttq_has_the_published_gradients():
    """Zhu et al. 2017, eq. 7 and 8; W_n enters with its sign, w' = -W_n."""
    weight, gradient = normal(7, 9), normal(7, 9, seed=1)
    coder = TrainedTernaryCoder()
    with torch.no_grad():
        coder.positive.fill_(1.7)
        coder.negative.fill_(0.6)
    threshold = 0.05 * weight.abs().max()
    above, below = weight > threshold, weight < -threshold
    found = gradients(coder, weight, gradient)
    wanted = torch.where(above, 1.7 * gradient, torch.where(below, 0.6 * gradient, gradient))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(coder.positive.grad, gradient[above].sum())
    torch.testing.assert_close(coder.negative.grad, -gradient[below].sum())
    assert 0 < int((~above & ~below).sum()) < 63
    assert set(coder.coding(weight).weight().flatten().tolist()) == {
        float(torch.tensor(value)) for value in (1.7, 0.0, -0.6)
    }


def test_ttq_s_numbers_get_the_derivative_of_the_loss():
    weight, target = normal(40), normal(40, seed=1)
    coder = TrainedTernaryCoder()
    coder.settle([nn.Parameter(weight)])

    def loss():
        return (coder.coded(weight) - target).square().sum()

    loss().backward()
    for parameter in (coder.positive, coder.negative):
        before, step = parameter.item(), 1e-2
        with torch.no_grad():
            parameter.fill_(before + step)
            up = loss()
            parameter.fill_(before - step)
            down = loss()
            parameter.fill_(before)
        assert float(up - down) / (2 * step) == pytest.approx(parameter.grad.item(), rel=1e-3)


def test_the_scale_of_signs_is_the_best_one():
    """Rastegari et al. 2016, eq. 6."""
    weight = normal(3, 60)
    found = BinaryCoder(granularity="channel").coding(weight)
    torch.testing.assert_close(found.scale, weight.abs().mean(1))
    assert torch.equal(found.weight().sign(), weight.sign())
    error = (weight - found.weight()).square().sum(1)
    for factor in torch.linspace(0, 2, 201):
        if abs(factor - 1) > 1e-3:
            assert ((weight - factor * found.weight()).square().sum(1) > error).all()


def test_the_gradient_through_signs_has_its_closed_form():
    weight, gradient = 1.2 * normal(4, 30), normal(4, 30, seed=1)
    scale, signs = weight.abs().mean(1, keepdim=True), weight.sign()
    wanted = scale * gradient * (weight.abs() <= 1) + signs / 30 * (gradient * signs).sum(1, keepdim=True)
    torch.testing.assert_close(gradients(BinaryCoder(granularity="channel"), weight, gradient), wanted)
    assert (weight.abs() > 1).any()


@pytest.mark.parametrize(("largest", "top"), [(1.0, 0), (0.76, 0), (0.74, -1), (1.51, 1), (1.49, 0), (0.05, -4)])
def test_powers_begin_where_inq_s_do(largest, top):
    """Zhou et al. 2017, eq. 2: n_1 = floor(log2(4 s / 3)); eq. 3 counts downwards from it."""
    levels = power_levels(torch.tensor([largest, -0.01]), 4)
    assert levels.tolist() == sorted(
        [0.0, *(sign * 2.0**power for sign in (1, -1) for power in range(top - 6, top + 1))]
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.floats(0.01, 100), st.integers(0, 99))
def test_weights_go_to_the_nearest_power(bits, width, seed):
    """Zhou et al. 2017, eq. 4: a <= |w| between neighbours a < b goes to b from (a + b) / 2 on."""
    weight = width * normal(40, seed=seed)
    levels = power_levels(weight, bits)
    assert len(levels) == (1 << bits) - 1
    found = PowerCoder(bits, incremental=False).coding(weight).weight()
    torch.testing.assert_close((weight - found).abs(), (weight.unsqueeze(1) - levels).abs().amin(1))
    sizes = levels[levels >= 0].tolist()
    for lower, upper in pairwise(sizes):
        inside = (weight.abs() > (lower + upper) / 2 * 1.0001) & (weight.abs() < upper * 1.4999)
        assert (found[inside].abs() == upper).all()


def test_portions_of_powers_fix_the_largest_weights_first():
    weight = nn.Parameter(normal(64))
    order = weight.detach().abs().argsort(descending=True)
    coder = PowerCoder(5, incremental=True)
    coder.settle([weight])
    for progress, fixed in ((0.0, 32), (0.25, 48), (0.5, 56), (0.75, 64)):
        coder.follow(progress, weight)
        passed = gradients(coder, weight.detach(), torch.ones(64))
        assert set(order[:fixed].tolist()) == set((passed == 0).nonzero().flatten().tolist())
        assert torch.equal(coder.coded(weight)[passed == 1], weight[passed == 1])
    assert [portion_at(progress) for progress in (0.1, 0.3, 0.6, 1.0)] == [0.5, 0.75, 0.875, 1.0]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.floats(-3, 3), st.floats(0.01, 10), st.booleans(), st.integers(0, 99))
def test_grids_hold_zero_exactly_and_round_by_half_a_step_at_most(bits, shift, width, symmetric, seed):
    rows = width * (normal(3, 20, seed=seed) + shift)
    rows[:, 3] = 0.0
    layout = rows_of((3, 20), 0, "channel")
    grid = grid_of(rows, bits, symmetric=symmetric)
    found = grid.coding(rows, layout).weight()
    assert (found[:, 3] == 0).all()
    slack = 0.5 if symmetric else 1.0  # rounding the zero point moves the ends of an asymmetric grid by half a step
    assert ((found - rows).abs() <= (slack + 1e-3) * grid.scale.unsqueeze(1)).all()


def test_asymmetric_grids_of_weights_on_one_side_are_twice_as_fine():
    rows = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) + 0.2
    symmetric, asymmetric = (grid_of(rows, 4, symmetric=kind) for kind in (True, False))
    torch.testing.assert_close(symmetric.scale / asymmetric.scale, torch.full((2,), 15 / 7))


def test_the_range_of_least_error_is_no_worse_than_any_tried():
    rows = normal(2, 300)
    best = best_share(rows, 3)
    layout = rows_of((2, 300), 0, "channel")

    def error(share):
        return (grid_of(rows, 3, share=share).coding(rows, layout).weight() - rows).square().sum(1)

    assert (best < 1).all()
    assert all((error(best) <= error(1 - step / 64) + 1e-6).all() for step in range(48))


def test_a_weight_that_the_grid_cuts_off_gets_no_gradient():
    weight = normal(2, 400)
    coder = UniformCoder(3, range="mse")
    largest = coder.coding(weight).weight().abs().amax(1, keepdim=True)
    step = largest / 3
    passed = gradients(coder, weight, torch.ones(2, 400))
    assert torch.equal(passed, (weight.abs() < largest + step / 2).float())
    assert (passed == 0).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(1, 4), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_integers_come_back_from_their_bytes_at_every_width(bits, channels, entries, symmetric, seed):
    from compress_codes.coded import keep

    weight = normal(channels, entries, seed=seed)
    coding = UniformCoder(bits, symmetric=symmetric).coding(weight)
    kept = keep(coding, {})
    assert torch.equal(kept(), coding.weight())
    beside = sum(part.nbytes for part in kept.extras())
    if kept.codes.ndim == 1:
        assert kept.codes.nbytes == packed_bytes(channels * entries, bits)
        assert torch.equal(unpack(kept.codes, bits, channels * entries), coding.codes.flatten().float())
        assert kept.codes.nbytes + beside == uniform_bytes(channels * entries, bits, channels, symmetric=symmetric)
    else:
        assert (bits, symmetric, kept.codes.nbytes) == (8, True, channels * entries)


def test_the_plain_form_has_one_alpha_from_the_largest_weight_of_the_network():
    large, small = 4 * normal(10, 10), 0.01 * normal(10, 10, seed=1)
    alpha = Alpha(8)
    alpha.fit([large, small])
    factor = 127 / large.abs().max()
    assert float(alpha.scale) == pytest.approx(float(1 / factor))
    for weight in (large, small):
        coding = PlainCoder(alpha).coding(weight)
        assert torch.equal(coding.codes.reshape(10, 10).int() - 128, torch.round(weight / alpha.scale).int())
        torch.testing.assert_close(coding.weight(), torch.round(weight * factor) / factor)
    assert len(PlainCoder(alpha).coding(large).codes.unique()) > 40
    assert len(PlainCoder(alpha).coding(small).codes.unique()) <= 3


def test_weights_are_multiplied_before_they_are_rounded():
    """round(w) alpha, the slip that the plain form invites, is zero for every weight below a half."""
    weight = 0.1 * normal(10, 10)
    alpha = Alpha(8)
    alpha.fit([weight])
    found = PlainCoder(alpha).coding(weight).weight()
    assert (torch.round(weight) == 0).all()
    assert ((found - weight).abs() <= alpha.scale / 2 * 1.001).all()
    assert (found != 0).float().mean() > 0.9


def test_what_outgrows_the_plain_grid_is_cut_off_and_gets_no_gradient():
    weight = torch.tensor([[0.5, -1.0, 0.25]])
    alpha = Alpha(4)
    alpha.fit([weight])
    grown = torch.tensor([[0.5, -2.0, 0.25]])
    assert gradients(PlainCoder(alpha), grown, torch.ones(1, 3)).tolist() == [[1, 0, 1]]
    assert PlainCoder(alpha).coding(grown).weight()[0, 1] == pytest.approx(-1.0)
