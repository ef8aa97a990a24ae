"""Fitting decomposed layers one by one to what the original layers gave."""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import pytest
import torch
from compress_factorize import Factorize
from compress_factorize.fitting import (
    Moments,
    error_of_outputs,
    fit_all,
    fit_last,
    fit_pieces,
    in_order,
    kept,
    matrix_of,
    put_matrix,
    seen,
    split,
)
from compress_factorize.methods import method_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.testing.digits import Epochs
from tests.support import NETS, make, make_run

SEEDS = st.integers(0, 10_000)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def trained():
    return apply_techniques(make("conv"), [Epochs(epochs=5)], make_run())


@settings(max_examples=40, deadline=None)
@given(count=st.integers(8, 30), features=st.integers(1, 6), outputs=st.integers(1, 4), seed=SEEDS)
def test_without_ridge_the_fit_is_the_least_squares_of_torch(count, features, outputs, seed):
    h, y = random(count, features, seed=seed).float(), random(count, outputs, seed=seed + 1).float()
    moments = Moments.of(h, y) if count % 2 else Moments.of(h[:5], y[:5]) + Moments.of(h[5:], y[5:])
    found = moments.best(random(outputs, features, seed=seed + 2), ridge=0.0)
    wanted = torch.linalg.lstsq(h.double(), y.double()).solution.T
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    lost = (y.double() - h.double() @ found.T).square().sum()
    assert float(moments.loss(found)) == pytest.approx(float(lost), rel=1e-4, abs=1e-4)
    assert moments.error(found) == pytest.approx(float((lost / y.double().square().sum()).sqrt()), rel=1e-3, abs=1e-3)


def test_the_ridge_keeps_what_the_calibration_never_shows():
    h = random(50, 4).float()
    h[:, 2:] = 0
    start, truth = random(3, 4, seed=1), random(3, 4, seed=2)
    found = Moments.of(h, h @ truth.float().T).best(start, ridge=1e-9)
    torch.testing.assert_close(found[:, :2], truth[:, :2], rtol=1e-4, atol=1e-4)
    assert torch.equal(found[:, 2:], start[:, 2:])


def chain_and_pairs(layer, image, method="spatial", share=0.5):
    """A layer cut to a rank, and what it gave for some batches."""
    if isinstance(layer, nn.Linear):
        ranks = [max(1, int(share * min(layer.weight.shape)))]
    else:
        ranks = {"separable": [layer.in_channels, 2], "cp": [6], "tucker": [3, 3]}.get(method, [4])
    chain = method_of(layer, method).factors(layer, ranks).pieces
    with torch.no_grad():
        pairs = [(x, layer(x)) for x in image.split(4)]
    return chain, pairs


@pytest.mark.parametrize("method", ["spatial", "tucker", "channel", "input", "cp", "separable"])
@pytest.mark.parametrize("geometry", [{"padding": 1}, {"stride": 2, "bias": False}], ids=str)
def test_the_last_layer_of_every_chain_is_fitted_to_the_outputs(method, geometry):
    layer = nn.Conv2d(6, 8, 3, **geometry)
    image = random(16, 6, 9, 9).float() * torch.arange(1.0, 7.0)[:, None, None]
    chain, pairs = chain_and_pairs(layer, image, method)
    before, start = error_of_outputs(chain, pairs), deepcopy(chain.state_dict())
    found = fit_last(chain, iter(pairs), iter(pairs))
    after = error_of_outputs(chain, pairs)
    assert found.before == pytest.approx(before, rel=1e-4) and found.after == pytest.approx(after, rel=1e-3)
    assert after < before
    last = f"{len(chain) - 1}."
    for name, tensor in chain.state_dict().items():
        assert torch.equal(tensor, start[name]) is not name.startswith(last)
    for factor in (0.99, 1.01):  # the minimum: any other scale does worse
        other = deepcopy(chain)
        with torch.no_grad():
            other[-1].weight.mul_(factor)
        assert error_of_outputs(other, pairs) > after


def test_a_linear_chain_with_a_bias_takes_over_the_mean():
    layer = nn.Linear(12, 10)
    x = random(64, 5, 12).float() + 3
    chain, pairs = chain_and_pairs(layer, x, share=0.5)
    fit_last(chain, iter(pairs), iter(pairs))
    with torch.no_grad():
        lost = torch.cat([y - chain(x) for x, y in pairs]).flatten(0, 1)
    assert lost.mean(0).abs().max() < 0.02 * lost.std()


@pytest.mark.parametrize(("sizes", "fit", "held"), [((4, 4, 4), 8, 4), ((8,), 6, 2), ((2,), 1, 1), ((1,), 1, 1)])
def test_what_is_held_out_is_not_fitted(sizes, fit, held):
    examples = torch.arange(sum(sizes)).split(list(sizes))
    parts = [torch.cat([batch["image"] for batch in part]) for part in split([{"image": one} for one in examples])]
    assert [len(part) for part in parts] == [fit, held]
    if sum(sizes) > 1:
        assert torch.equal(torch.cat(parts), torch.arange(sum(sizes)))


def test_a_fit_that_does_worse_on_what_is_held_out_is_undone():
    layer = nn.Linear(12, 10)
    chain, pairs = chain_and_pairs(layer, random(8, 12).float())
    misleading = [(x, torch.randn_like(y)) for x, y in pairs]
    start = deepcopy(chain.state_dict())
    found = fit_last(chain, iter(misleading), iter(pairs))
    assert found.after == found.before
    again = fit_all(chain, misleading, pairs, 20, found)
    assert again == found
    assert all(torch.equal(tensor, start[name]) for name, tensor in chain.state_dict().items())


def test_steps_fit_every_layer_and_do_better_than_the_last_alone():
    layer = nn.Conv2d(6, 8, 3, padding=1)
    image = random(16, 6, 9, 9).float() * torch.arange(1.0, 7.0)[:, None, None]
    chain, pairs = chain_and_pairs(layer, image, "spatial")
    closed = fit_last(chain, iter(pairs), iter(pairs))
    start = deepcopy(chain.state_dict())
    chain.requires_grad_(False)
    found = fit_all(chain, pairs, pairs, 100, closed)
    assert found.after < 0.99 * closed.after and found.before == closed.before
    assert found.after == pytest.approx(error_of_outputs(chain, pairs), rel=1e-5)
    assert not torch.equal(chain[0].weight, start["0.weight"])
    assert not any(parameter.requires_grad for parameter in chain.parameters())


def test_a_table_with_sparse_gradients_is_fitted_by_steps_too():
    layer = nn.Embedding(30, 8, sparse=True)
    chain = method_of(layer, "spatial").factors(layer, [3]).pieces
    ids = torch.randint(0, 30, (64,), generator=torch.Generator().manual_seed(0))
    pairs = [(ids, layer(ids).detach())]
    found = fit_all(chain, pairs, pairs, 30, fit_last(chain, iter(pairs), iter(pairs)))
    assert found.after < found.before and chain[0].sparse


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, bias=st.booleans())
def test_a_weight_goes_through_its_matrix(seed, bias):
    layer = nn.Conv2d(3, 4, (1, 3), bias=bias)
    other = nn.Conv2d(3, 4, (1, 3), bias=bias)
    with torch.no_grad():
        put_matrix(other, matrix_of(layer))
    assert matrix_of(layer).shape == (4, 10 if bias else 9)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in layer.state_dict().items())


def test_layers_are_fitted_in_the_order_in_which_they_run():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.early = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, image):
            return self.late(self.early(image))

    model = Net()
    assert in_order(model, {"late": model.late, "early": model.early}, make_run()) == {"early": 1, "late": 1}


def test_the_network_stops_behind_the_last_call_that_is_wanted():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head, self.reached = nn.Linear(64, 64), nn.Linear(64, 10), 0

        def forward(self, image):
            hidden = self.inner(self.inner(image.flatten(1)))
            try:
                hidden = self.inner(hidden)
            except Exception:
                hidden = None
            self.reached += 1
            return self.head(hidden)

    model, run = Twice(), make_run()
    assert in_order(model, {"head": model.head, "inner": model.inner}, run) == {"inner": 3, "head": 1}
    batch = next(iter(run.calibration()))
    whole, model.reached = seen(model, model.inner, run, batch), 0
    for calls in (1, 3):
        some = seen(model, model.inner, run, batch, calls)
        assert [len(part) for part in some] == [calls, calls]
        assert all(torch.equal(one, other) for one, other in zip(whole[1], some[1], strict=False))
    assert model.reached == 0 and not model.inner._forward_hooks


def test_a_later_layer_makes_up_for_what_the_earlier_ones_lost(trained):
    run = make_run()
    cut = Factorize(ratio=0.4, fit="weight", recalibrate=False).apply(deepcopy(trained), run)
    chains = {
        path: module
        for path, module in cut.named_modules()
        if isinstance(module, nn.Sequential) and isinstance(trained.get_submodule(path), nn.Conv2d | nn.Linear)
    }
    assert len(chains) > 3
    path = list(in_order(cut, chains, run))[-1]
    batch = next(iter(run.calibration()))

    def end_to_end(model):
        wanted, found = (
            seen(trained, trained.get_submodule(path), run, batch)[1][0],
            seen(model, model.get_submodule(path), run, batch)[1][0],
        )
        return float((wanted - found).norm() / wanted.norm())

    before = end_to_end(cut)
    found = fit_pieces(trained, cut, chains, run)
    assert set(found) == set(chains) and all(fit.after <= fit.before for fit in found.values())
    assert end_to_end(cut) < 0.9 * before


@pytest.mark.parametrize("how", ["least-squares", "steps"])
def test_refining_regains_quality_without_training(trained, how):
    said = []
    run = make_run(teller=said.append)
    cut = partial(Factorize, ratio=0.3, fit="weight", recalibrate=False)
    steps = {"refine_steps": 30} if how == "steps" else {}
    plain, refined = (apply_techniques(trained, [way], run) for way in (cut(), cut(refine=how, **steps)))
    assert run.evaluate(refined).value > run.evaluate(plain).value + 0.05
    assert "before and after fitting: blocks.0.conv1 " in said[-1] and "% to " in said[-1]
    assert plain.state_dict().keys() == refined.state_dict().keys()


@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_network_is_refined_and_survives(name, tmp_path):
    run = make_run()
    found = apply_techniques(make(name), [Factorize(ratio=0.6, fit="weight", refine="least-squares")], run)
    plain = apply_techniques(make(name), [Factorize(ratio=0.6, fit="weight", recalibrate=False)], run)
    assert any(not torch.equal(tensor, plain.state_dict()[key]) for key, tensor in found.state_dict().items())
    kind = type(make(name)).__name__
    save(found, tmp_path / "model", factory=f"tests.support:{kind}")
    loaded = load(tmp_path / "model", factory=f"tests.support:{kind}")
    arguments, keywords = run.example
    with torch.no_grad():
        assert torch.equal(loaded(*arguments, **keywords), found(*arguments, **keywords))


def test_the_same_seed_refines_alike(trained):
    one, other = (
        apply_techniques(trained, [Factorize(ratio=0.4, refine="steps", refine_steps=5)], make_run()) for _ in range(2)
    )
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


def test_no_more_is_kept_in_memory_than_allowed(monkeypatch):
    monkeypatch.setattr("compress_factorize.fitting.NUMBERS", 100)
    pairs = [(torch.zeros(20), torch.zeros(20)) for _ in range(5)]
    assert len(kept(iter(pairs))) == 2
    assert len(kept(iter([(torch.zeros(200), torch.zeros(200))]))) == 1


def test_an_error_of_nothing_is_none():
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    assert Moments(torch.eye(2).double(), nothing, torch.zeros(())).error(nothing) == 0.0
    assert error_of_outputs(nn.Identity(), [(nothing, nothing)]) == 0.0
