"""Tuning a training: optimizers, regularizers, dropout, early stopping, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import get_args

import pytest
import torch
from compress_tune import Tune
from compress_tune.dropout import set_dropout
from compress_tune.optimizers import RULES, default_rate
from compress_tune.regularizers import l1_of_scales, l1_of_weights, l2_of_weights
from pydantic import ValidationError
from torch import nn, optim

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ModelError
from compress_core.parts import TrainingPlan
from compress_core.training import parameter_groups
from tests.support import make, make_run


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Networks that a test makes by itself are the same in any order of the tests."""
    torch.manual_seed(0)


class DropNet(nn.Module):
    """A network that can forget."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(rate), nn.Linear(32, 10), nn.Dropout1d(rate)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def optimizer_of(tune: Tune, model: nn.Module) -> optim.Optimizer:
    plan = tune.plan(TrainingPlan(), make_run())
    return plan.optimizer(parameter_groups(model, nn.ModuleList(), plan.weight_decay))


def one_update(tune: Tune, weight: list[float], gradient: list[float]) -> torch.Tensor:
    """The weight after one update by a loss whose own gradient is `gradient`."""
    model = nn.Linear(len(weight), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weight]))
    plan = tune.plan(TrainingPlan(), make_run())
    optimizer = plan.optimizer(parameter_groups(model, nn.ModuleList(), plan.weight_decay))
    loss = (model.weight * torch.tensor([gradient])).sum() + sum(term(model) for term in plan.regularizers)
    loss.backward()
    optimizer.step()
    return model.weight.detach()[0]


@pytest.mark.parametrize(
    ("fields", "kind", "options"),
    [
        ({"optimizer": "sgd"}, optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}),
        ({"optimizer": "sgd", "momentum": 0}, optim.SGD, {"lr": 0.5, "momentum": 0}),
        (
            {"optimizer": "sgd", "momentum": 0.5, "nesterov": True, "learning_rate": 0.2, "weight_decay": 0.1},
            optim.SGD,
            {"lr": 0.2, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
        ),
        ({"optimizer": "adam"}, optim.Adam, {"lr": 1e-3, "weight_decay": 0.0}),
        ({"optimizer": "adamw"}, optim.AdamW, {"lr": 1e-3, "weight_decay": 0.01}),
        ({"optimizer": "adamw", "weight_decay": 0}, optim.AdamW, {"weight_decay": 0.0}),
        ({"optimizer": "nadam"}, optim.NAdam, {"lr": 2e-3, "decoupled_weight_decay": True, "weight_decay": 0.0}),
        ({"optimizer": "rmsprop", "momentum": 0.5}, optim.RMSprop, {"lr": 5e-4, "momentum": 0.5}),
        ({"optimizer": "adagrad"}, optim.Adagrad, {"lr": 1e-2}),
    ],
)
def test_each_optimizer_is_torchs_own_with_its_own_rate(fields, kind, options):
    optimizer = optimizer_of(Tune(**fields), make("mlp"))
    assert type(optimizer) is kind
    decaying = optimizer.param_groups[0]
    assert {name: decaying[name] for name in options} == pytest.approx(options)


def test_every_optimizer_of_the_recipe_has_its_rule():
    assert set(get_args(Tune.model_fields["optimizer"].annotation)) == set(RULES)


def test_only_weights_decay():
    optimizer = optimizer_of(Tune(weight_decay=0.3), make("conv"))
    axes = {group["weight_decay"]: {weight.ndim for weight in group["params"]} for group in optimizer.param_groups}
    assert axes == {0.3: {2, 4}, 0.0: {1}}


def test_the_default_rate_grows_with_the_batch_for_sgd_and_with_its_root_for_adam():
    assert default_rate("sgd", 256, 0.9) == pytest.approx(4 * default_rate("sgd", 64, 0.9))
    assert default_rate("adam", 256, 0.0) == pytest.approx(2 * default_rate("adam", 64, 0.0))
    rates = {rule.rate for rule in RULES.values()}
    assert max(rates) / min(rates) > 100
    assert optimizer_of(Tune(optimizer="adam", batch_size=16), make("mlp")).param_groups[0]["lr"] == pytest.approx(5e-4)


def test_a_rate_that_was_given_is_not_scaled():
    assert optimizer_of(Tune(learning_rate=0.03, batch_size=8), make("mlp")).param_groups[0]["lr"] == 0.03


def test_decay_shrinks_by_the_rate_and_l2_is_divided_by_the_gradients_size():
    weight, gradient, rate, factor = [2.0, -4.0], [3.0, 0.5], 0.1, 0.2
    decayed = one_update(
        Tune(optimizer="adamw", learning_rate=rate, weight_decay=factor, epochs=1), weight, gradient
    ).tolist()
    # the first step of adam is the rate times the sign of the gradient
    assert decayed == pytest.approx([2.0 * (1 - rate * factor) - rate, -4.0 * (1 - rate * factor) - rate], abs=1e-5)
    pulled = one_update(Tune(optimizer="adam", learning_rate=rate, l2=factor, epochs=1), weight, gradient).tolist()
    # 3 + 0.2 * 2 > 0 and 0.5 - 0.2 * 4 < 0: L2 turns the second step round, and has no say in its size
    assert pulled == pytest.approx([2.0 - rate, -4.0 + rate], abs=1e-5)


def test_under_sgd_decay_and_l2_are_one_thing():
    fields = {"optimizer": "sgd", "learning_rate": 0.1, "epochs": 1}
    decayed = one_update(Tune(weight_decay=0.2, **fields), [2.0, -4.0], [3.0, 0.5])
    pulled = one_update(Tune(l2=0.2, **fields), [2.0, -4.0], [3.0, 0.5])
    assert decayed.tolist() == pytest.approx([2.0 - 0.1 * 3.4, -4.0 - 0.1 * (0.5 - 0.8)], abs=1e-6)
    assert torch.allclose(decayed, pulled, atol=1e-7)


@torch.no_grad()
def test_the_terms_count_weights_and_scales_and_nothing_else():
    model = make("conv")
    weights = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    model.bn.weight.mul_(-2)
    assert float(l1_of_weights(model, 0.5)) == pytest.approx(0.5 * sum(float(w.abs().sum()) for w in weights), rel=1e-5)
    assert float(l2_of_weights(model, 3)) == pytest.approx(1.5 * sum(float((w * w).sum()) for w in weights), rel=1e-5)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    channels = sum(norm.num_features for norm in norms)
    assert float(l1_of_scales(model, 0.1)) == pytest.approx(0.1 * (channels + len(model.bn.weight)), rel=1e-5)
    model.stem.weight.requires_grad_(False)
    rest = sum(float(w.abs().sum()) for w in weights if w is not model.stem.weight)
    assert float(l1_of_weights(model, 1)) == pytest.approx(rest, rel=1e-5)
    assert float(l2_of_weights(nn.LayerNorm((2, 3)), 1)) == 0.0
    assert float(l1_of_scales(nn.LayerNorm((2, 3)), 1)) == 6.0


def test_l1_drives_far_more_weights_towards_zero_and_keeps_what_matters():
    run = make_run()
    common = {"optimizer": "adam", "learning_rate": 5e-3, "schedule": "linear", "epochs": 12, "keep": "last"}
    plain = apply_techniques(make("mlp"), [Tune(**common)], run)
    sparse = apply_techniques(make("mlp"), [Tune(l1=1e-3, **common)], run)
    near = [
        float(torch.cat([(p.abs() < 1e-3).flatten() for p in model.parameters() if p.ndim >= 2]).float().mean())
        for model in (plain, sparse)
    ]
    assert near[0] < 0.1
    assert near[1] > 0.4
    assert run.evaluate(sparse).value > 0.85


def test_l1_on_scales_shrinks_the_norms_factors():
    run = make_run()
    common = {"optimizer": "adam", "learning_rate": 1e-2, "epochs": 4, "keep": "last"}
    plain = apply_techniques(make("conv"), [Tune(**common)], run)
    slim = apply_techniques(make("conv"), [Tune(l1=1e-2, l1_on="scales", **common)], run)
    sums = [float(l1_of_scales(model, 1.0).detach()) for model in (plain, slim)]
    assert sums[1] < 0.8 * sums[0]
    with pytest.raises(ModelError, match="no norm layers"):
        apply_techniques(make("mlp"), [Tune(l1=1e-2, l1_on="scales")], run)


@pytest.mark.parametrize("optimizer", list(RULES))
def test_every_optimizer_learns_the_digits_at_its_default_rate(optimizer):
    run = make_run()
    trained = apply_techniques(
        make("conv"), [Tune(optimizer=optimizer, epochs=4, schedule="cosine", warmup=0.1, batch_size=32)], run
    )
    assert run.evaluate(trained).value > 0.8


def test_training_stops_when_nothing_has_got_better():
    seen: list[tuple[str, float, int]] = []
    run = make_run(logger=lambda *figures: seen.append(figures))
    apply_techniques(make("mlp"), [Tune(optimizer="sgd", learning_rate=1e-12, epochs=20, patience=3)], run)
    assert [step for name, _, step in seen if name == "train/loss"] == [1, 2, 3, 4]


def test_the_best_epoch_is_kept_unless_the_last_is_wanted():
    seen: dict[int, float] = {}

    def note(name: str, value: float, step: int) -> None:
        if name == "validation/accuracy":
            seen[step] = value

    run = make_run(logger=note)
    fields = {"optimizer": "sgd", "learning_rate": 0.8, "momentum": 0, "epochs": 8}
    best = apply_techniques(make("mlp"), [Tune(**fields)], run)
    assert run.evaluate(best).value == pytest.approx(max(seen.values()))
    last = apply_techniques(make("mlp"), [Tune(keep="last", **fields)], run)
    assert run.evaluate(last).value == pytest.approx(seen[8])


def test_the_rate_warms_up_and_decays_at_every_update():
    rates: list[float] = []

    class Watched(Tune):
        def plan(self, plan, run):
            plan = super().plan(plan, run)
            make_it = plan.optimizer

            def spy(groups):
                optimizer = make_it(groups)
                optimizer.register_step_pre_hook(lambda own, *_: rates.append(own.param_groups[0]["lr"]))
                return optimizer

            return replace(plan, optimizer=spy)

    run = make_run()
    apply_techniques(
        make("mlp"), [Watched(learning_rate=0.01, epochs=2, batch_size=99, warmup=0.25, schedule="linear")], run
    )
    assert len(rates) == 20
    grown, fallen = rates[:6], rates[5:]
    assert grown == pytest.approx([0.01 * (0.01 + 0.99 * step / 5) for step in range(6)])
    assert fallen == pytest.approx([0.01 * (1 - step / 15) for step in range(15)])


def test_dropout_is_set_survives_the_artifact_and_is_off_at_inference(tmp_path):
    said: list[str] = []
    run = make_run(teller=said.append)
    model = apply_techniques(DropNet(), [Tune(dropout=0.25, epochs=1)], run)
    assert "tune: dropout 0.25 in 2 layers" in said
    save(model, tmp_path / "model", factory="tests.plugins.test_tune:DropNet")
    loaded = load(tmp_path / "model", factory="tests.plugins.test_tune:DropNet")
    assert [module.p for module in loaded.modules() if hasattr(module, "p")] == [0.25, 0.25]
    image = run.splits.test.columns["image"][:64]
    assert torch.equal(loaded(image), loaded(image))
    assert torch.equal(loaded(image), model(image))
    loaded.train()
    kept = loaded.layers[3](torch.ones(20_000))
    assert float((kept == 0).float().mean()) == pytest.approx(0.25, abs=4 * sqrt(0.25 * 0.75 / 20_000))
    assert float(kept.max()) == pytest.approx(1 / 0.75)


def test_dropout_reaches_attention_and_stacked_recurrence():
    assert set_dropout(make("transformer"), 0.1) == 2 * 4  # per layer: attention and three dropout layers
    stacked, single = nn.LSTM(4, 4, num_layers=2), nn.LSTM(4, 4)
    assert (set_dropout(stacked, 0.3), stacked.dropout, set_dropout(single, 0.3), single.dropout) == (1, 0.3, 0, 0.0)


def test_dropout_for_a_network_without_it_is_an_error():
    with pytest.raises(ModelError, match="no dropout layer"):
        apply_techniques(make("mlp"), [Tune(dropout=0.5)], make_run())


def test_gradients_are_clipped_to_the_norm():
    run = make_run()
    before = make("mlp")
    after = apply_techniques(
        before,
        [
            Tune(
                optimizer="sgd",
                momentum=0,
                learning_rate=1.0,
                gradient_clip=1e-3,
                epochs=1,
                batch_size=997,
                keep="last",
            )
        ],
        run,
    )
    moved = torch.cat([(a - b).flatten() for a, b in zip(after.parameters(), before.parameters(), strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(1e-3, rel=1e-3)


def test_the_same_seed_gives_the_same_bytes():
    run = make_run()
    fields = {"epochs": 2, "dropout": 0.2, "schedule": "cosine", "warmup": 0.2, "l1": 1e-5}
    torch.manual_seed(5)
    start = DropNet()
    one, other = (apply_techniques(start, [Tune(**fields)], run) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), start.parameters(), strict=True))


def test_without_epochs_nothing_trains_and_it_says_so():
    said: list[str] = []
    run = make_run(teller=said.append)
    model = make("mlp")
    same = apply_techniques(model, [Tune(epochs=0)], run)
    assert not Tune(epochs=0).brings_epochs
    assert said == ["tune: no epochs: nothing changed"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def test_the_wishes_of_other_techniques_stay_in_the_plan():
    def term(model):
        return torch.zeros(())

    before = TrainingPlan(regularizers=(term,), task_weight=0.3, select_from=0.7, gradient_clip=2.0)
    plan = Tune(l1=0.1, epochs=3).plan(before, make_run())
    assert (plan.task_weight, plan.select_from, plan.gradient_clip, plan.epochs) == (0.3, 0.7, 2.0, 3)
    assert plan.regularizers[0] is term
    assert len(plan.regularizers) == 2


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"optimizer": "adam", "momentum": 0.9}, "no `momentum`"),
        ({"optimizer": "adam", "nesterov": True}, "for sgd"),
        ({"optimizer": "sgd", "momentum": 0, "nesterov": True}, "above 0"),
        ({"optimizer": "adam", "weight_decay": 0.1}, "use adamw"),
        ({"optimizer": "rmsprop", "weight_decay": 0.1}, "use adamw"),
        ({"l1_on": "scales"}, "without `l1`"),
        ({"final": 0.1}, "no `final`"),
        ({"schedule": "exponential", "final": 0}, "never gets to 0"),
        ({"schedule": "cosine", "gamma": 0.5}, "for the schedule `step`"),
        ({"schedule": "linear", "step_size": 0.5}, "for the schedule `step`"),
        ({"patience": 3, "keep": "last"}, "waits for the best"),
        ({"warmup": 1.0}, "less than 1"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"optimizer": "sdg"}, "'sgd'"),
    ],
)
def test_fields_that_mean_nothing_together_are_refused(fields, why):
    with pytest.raises(ValidationError, match=why):
        Tune(**fields)


def test_parameters_survive_being_written_out_in_full():
    for fields in ({}, Tune.example, {"optimizer": "sgd", "nesterov": True, "schedule": "step", "gamma": 0.5}):
        tune = Tune(**fields)
        assert Tune(**tune.model_dump()) == tune
