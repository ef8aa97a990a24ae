"""Masks that are held after every update: by filling at first, by factors once they stay the same."""

from __future__ import annotations

import torch
from compress_prune import Prune
from compress_prune.masks import WeightMasks

from compress_core.run import Run
from tests.support import MLP, make_run


def masks_of(model: MLP, run: Run) -> WeightMasks:
    masks = Prune(amount=0.5, schedule="one-shot").begin(model, run)
    assert isinstance(masks, WeightMasks)
    return masks


def moved(model: MLP) -> list[torch.Tensor]:
    """The weights, after all of them were moved away from zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(1.0)
    return [parameter.detach().clone() for parameter in model.parameters() if parameter.ndim >= 2]


def test_what_is_gone_is_zero_after_every_update_and_the_rest_keeps_its_bits() -> None:
    torch.manual_seed(0)
    model, run = MLP(), make_run()
    masks = masks_of(model, run)
    for _ in range(6):
        before = moved(model)
        masks.hold(model)
        for weight, gone, old in zip(masks.weights(model), masks.gone, before, strict=True):
            assert torch.equal(weight, old.masked_fill(gone, 0))
    assert masks.factors


def test_masks_that_change_are_followed_at_once() -> None:
    torch.manual_seed(0)
    model, run = MLP(), make_run()
    masks = masks_of(model, run)
    for _ in range(4):
        masks.hold(model)
    masks.gone[0].fill_(True)
    moved(model)
    masks.hold(model)
    assert not masks.weights(model)[0].any()


def test_zeros_have_no_sign_in_the_end() -> None:
    torch.manual_seed(0)
    model, run = MLP(), make_run()
    masks = masks_of(model, run)
    for _ in range(4):
        moved(model)
        masks.hold(model)
    masks.finish(model, run)
    for weight, gone in zip(masks.weights(model), masks.gone, strict=True):
        assert gone.any() and not torch.signbit(weight[gone]).any()


def test_pruning_at_once_without_training_makes_no_factors() -> None:
    model, run = MLP(), make_run()
    technique = Prune(amount=0.5, schedule="one-shot")
    state = technique.begin(model, run)
    technique.after_step(model, state, 1.0, run)
    assert isinstance(state, WeightMasks) and not state.factors
