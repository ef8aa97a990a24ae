"""Ranking by the second moment of the gradients, and by how crowded a weight's row and column are."""

from __future__ import annotations

import pytest
import torch
from compress_prune import Prune
from compress_prune.criteria import SecondMoment
from compress_prune.masks import WeightMasks
from compress_prune.observing import Scorer
from compress_prune.patterns import Singles
from compress_prune.scoring import crowding
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.testing import Epochs, check_technique
from compress_core.weights import weights
from tests.support import make, make_run


def masks_of(weight: list[list[float]], share: float, *, density: float, criterion: str = "l1") -> torch.Tensor:
    """Which weights of a layer stay."""
    from compress_core.catalog import catalog

    model, run = nn.Linear(len(weight[0]), len(weight), bias=False), make_run()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weight))
    scorer = Scorer(catalog().criteria[criterion](), model, run)
    masks = WeightMasks(model, {"weight": share}, Singles(), scorer, whole=False, density=density)
    masks.grow(model, 1.0, run)
    return model.weight.detach() != 0


def emptied(model: nn.Module) -> int:
    """Rows and columns of weights of which nothing is left."""
    matrices = [place.parameter.detach().flatten(1) for place in weights(model)]
    return sum(int((matrix == 0).all(axis).sum()) for matrix in matrices for axis in (0, 1))


def test_second_moment_is_the_magnitude_times_the_root_of_adams_second_moment():
    torch.manual_seed(0)
    model, run = make("mlp"), make_run()
    criterion = SecondMoment()
    state = criterion.begin(model, run)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    for at in range(60):
        chosen = torch.arange(16 * at, 16 * at + 16) % len(run.splits.train)
        batch = run.splits.train.take(chosen)
        optimizer.zero_grad()
        F.cross_entropy(model(batch["image"]), batch["label"]).backward()
        criterion.observe(model, state)
        optimizer.step()
    for place in weights(model):
        moment = optimizer.state[place.parameter]["exp_avg_sq"] / (1 - 0.999**60)
        expected = place.parameter.detach().abs() * moment.sqrt()
        found = criterion.weight_scores(place.name, place.parameter, state)
        torch.testing.assert_close(found, expected, rtol=0.03, atol=1e-8)


def test_second_moment_forgets_as_slowly_as_adam():
    model = nn.Linear(1, 1, bias=False)
    criterion = SecondMoment()
    state = criterion.begin(model, make_run())
    model.weight.grad = torch.ones(1, 1)
    for _ in range(1000):
        criterion.observe(model, state)
    model.weight.grad = torch.zeros(1, 1)
    for _ in range(500):
        criterion.observe(model, state)
    assert float(state.of("weight")) == pytest.approx(0.999**500, rel=1e-3)


def test_crowding_is_the_power_of_the_densities_of_row_and_column():
    alive = torch.tensor([[True, True, False, False], [True, False, False, False]])
    row, column = torch.tensor([[2 / 4], [1 / 4]]), torch.tensor([[1.0, 1 / 2, 1 / 2, 1 / 2]])
    torch.testing.assert_close(crowding(alive, 0.5), (row * column).sqrt() / (3 / 8))
    torch.testing.assert_close(crowding(alive, 0.0), torch.ones(2, 4))


def test_crowding_sees_a_convolution_as_filters_by_inputs_and_places():
    alive = torch.rand(6, 3, 5, 5) > 0.7
    flat = crowding(alive.flatten(1), 0.25)
    torch.testing.assert_close(crowding(alive, 0.25), flat.reshape(6, 3, 5, 5))


def test_with_density_a_lone_weight_goes_before_a_smaller_one_in_company():
    weight = [[0.9, 0.9, 0.9, 0.9], [0.9, 0.8, 0.9, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    assert not masks_of(weight, 9 / 16, density=0.0)[1, 1]
    assert not masks_of(weight, 9 / 16, density=0.5)[2, 3]
    assert masks_of(weight, 9 / 16, density=0.5)[1, 1]


def test_with_density_as_many_weights_go_and_more_rows_and_columns_are_empty():
    run = make_run()
    plain, dense = (
        apply_techniques(
            make("mlp"),
            [Prune(amount=0.9, allocation="global", criterion="second-moment", density=power), Epochs(epochs=6)],
            run,
        )
        for power in (0.0, 0.5)
    )
    left = [sum(int(place.parameter.count_nonzero()) for place in weights(model)) for model in (plain, dense)]
    assert left[0] == left[1]
    assert emptied(dense) > 1.15 * emptied(plain)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"granularity": "kernel"}, "ranks single weights"),
        ({"schedule": "rigl"}, "which `rigl` fills again"),
        ({"criterion": "movement"}, "have a sign"),
    ],
)
def test_density_is_refused_where_it_means_nothing(parameters, reason):
    with pytest.raises(ValidationError, match=reason):
        Prune(amount=0.5, density=0.25, **parameters)


def test_pruning_with_density_keeps_the_promises_of_a_technique():
    technique = Prune(amount=0.5, density=0.25, criterion="second-moment", allocation="global")
    report = check_technique(technique, nets=["mlp"], others=[Epochs()], compose=False, export=False)
    assert not report.refused
