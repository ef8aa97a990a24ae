"""What a user's own code draws at random, from whichever generator, is the seed's; the caller's numbers stay."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from compress_core.applying import apply_techniques
from compress_core.data import Columns, Splits, make_splits
from compress_core.factory import build_model
from compress_core.parts import DataSource, Technique
from compress_core.recipe import read_recipe
from compress_core.seeding import seed_all, seeded
from tests.core.fakes import RECIPE, fake_catalog
from tests.core.nets import drawn
from tests.support import make, make_run

SEEDS = [0, 1, 2**32 - 1, 2**40, -3]


class Shake(Technique):
    """Draws from every generator."""

    name = "shake"

    def apply(self, model, run):
        with torch.no_grad():
            model.layers[1].bias[:3] = torch.tensor(drawn())
        return model


class Noise(DataSource):
    """Examples drawn from every generator."""

    name = "noise"

    def splits(self, seed):
        column = Columns({"x": torch.tensor([drawn() for _ in range(4)])})
        return Splits(column, column, column)


@pytest.fixture
def untouched():
    """Check that the caller's random numbers go on as if nothing had happened."""
    seed_all(11)
    expected = drawn()
    seed_all(11)
    yield
    assert drawn() == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_decides_torch_numpy_and_python(untouched, seed):
    found = []
    for _ in range(2):
        with seeded(seed):
            found.append(drawn())
    with seeded(seed + 1):
        other = drawn()
    assert found[0] == found[1]
    assert all(one != another for one, another in zip(found[0], other, strict=True))


def test_the_caller_s_numbers_stay_when_the_block_fails(untouched):
    with pytest.raises(KeyError), seeded(5):
        drawn()
        raise KeyError


def test_a_factory_that_draws_from_numpy_and_random_is_reproducible(untouched):
    one, again, other = (build_model("tests.core.nets:Drawn", {}, seed=seed) for seed in (3, 3, 4))
    assert one.drawn == again.drawn
    assert all(mine != theirs for mine, theirs in zip(one.drawn, other.drawn, strict=True))


def test_a_technique_that_draws_from_numpy_and_random_is_reproducible(untouched):
    def bias(seed):
        return apply_techniques(make("mlp"), [Shake()], make_run(seed=seed)).layers[1].bias[:3].tolist()

    assert bias(3) == bias(3)
    assert all(one != other for one, other in zip(bias(3), bias(4), strict=True))


def test_a_data_source_that_draws_from_numpy_and_random_is_reproducible(untouched, tmp_path):
    def examples(seed):
        (tmp_path / "params.yaml").write_text(RECIPE.replace("seed: 0", f"seed: {seed}"))
        recipe = replace(read_recipe(tmp_path / "params.yaml", fake_catalog()), data=Noise())
        return make_splits(recipe).train.column("x")

    assert torch.equal(examples(3), examples(3))
    assert not torch.any(examples(3) == examples(4))


def test_drawn_uses_all_three():
    seed_all(0)
    first = drawn()
    random.seed(0)
    assert drawn()[2] == first[2]
    np.random.seed(0)
    assert drawn()[1] == first[1]
    torch.manual_seed(0)
    assert drawn()[0] == first[0]
