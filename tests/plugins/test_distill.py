"""Distillation: soft targets, hints, and what a student gains from its teacher."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from compress_distill import Distill
from compress_distill.hints import Regressor, channel_axis
from compress_distill.soft_targets import soft_target_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torchmetrics.regression import MeanSquaredError

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.data import Columns
from compress_core.errors import ModelError, RecipeError, TrainingError
from compress_core.order import check_together
from compress_core.parts import Change, TrainingPlan, TrainingTechnique
from tests.support import MLP, Block, Classification, ConvNet, DictNet, digits, make, make_run


class Epochs(TrainingTechnique):
    """Trains, and nothing else."""

    name = "test-epochs"
    epochs: int = 1
    rate: float = 1e-2
    batch_size: int = 64

    @property
    def changes(self) -> frozenset[Change]:
        return frozenset({Change.TRAINING})

    @property
    def brings_epochs(self) -> bool:
        return True

    def plan(self, plan, run):
        return replace(
            plan,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=lambda groups: torch.optim.Adam(groups, lr=self.rate),
        )


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Networks that a test makes by itself are the same in any order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A network that knows the digits."""
    return apply_techniques(make("conv"), [Epochs(epochs=4)], make_run())


def logits(seed: int, examples: int = 6, classes: int = 5) -> torch.Tensor:
    return torch.randn(examples, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), temperature=st.floats(0.5, 20.0))
def test_the_loss_is_the_divergence_of_the_softened_probabilities(seed, temperature):
    student, taught = logits(seed), logits(seed + 1000)
    p, q = (found.div(temperature).softmax(-1) for found in (taught, student))
    expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    assert float(soft_target_loss(student, taught, temperature)) == pytest.approx(float(expected), rel=1e-3, abs=1e-5)


def test_two_classes_give_the_figure_worked_out_by_hand():
    # softmax(0, ln 3) = (1/4, 3/4) teaches softmax(0, 0) = (1/2, 1/2): KL = 1/4 ln 1/2 + 3/4 ln 3/2
    student, taught = torch.zeros(1, 2), torch.tensor([[0.0, 3.0]]).log().nan_to_num(neginf=0.0)
    assert float(soft_target_loss(student, taught, 1.0)) == pytest.approx(0.130812, abs=1e-6)
    assert float(soft_target_loss(2 * student, 2 * taught, 2.0)) == pytest.approx(4 * 0.130812, abs=1e-5)


def test_the_gradient_is_the_difference_of_the_probabilities_times_the_temperature():
    student, taught, temperature = logits(1).requires_grad_(), logits(2), 3.0
    soft_target_loss(student, taught, temperature).backward()
    difference = (student / temperature).softmax(-1) - (taught / temperature).softmax(-1)
    assert torch.allclose(student.grad, (temperature / len(student) * difference).double(), atol=1e-6)


def test_a_high_temperature_matches_centred_logits_whatever_its_height():
    student, taught = logits(3), logits(4)
    student, taught = (found - found.mean(-1, keepdim=True) for found in (student, taught))
    gradients = []
    for temperature in (50.0, 100.0):
        own = student.clone().requires_grad_()
        soft_target_loss(own, taught, temperature).backward()
        gradients.append(own.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=0.05, atol=1e-3)
    limit = (student - taught) / (student.shape[-1] * len(student))
    assert torch.allclose(gradients[1], limit, rtol=0.05, atol=1e-3)


def test_every_place_of_a_sequence_counts_once():
    student, taught = logits(5, 12), logits(6, 12)
    flat = soft_target_loss(student, taught, 2.0)
    assert torch.allclose(soft_target_loss(student.view(3, 4, 5), taught.view(3, 4, 5), 2.0), flat)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    student = make("mlp")
    run = make_run(teacher=student)
    distill = Distill(temperature=1.0, weight=1.0)
    batch = next(iter(run.calibration()))
    term = distill.loss(batch, run.forward(student, batch), student, None, run)
    term.backward()
    assert distill.plan(TrainingPlan(), run).task_weight == 0.0
    assert float(term.detach()) == pytest.approx(0.0, abs=1e-6)
    assert max(float(parameter.grad.abs().max()) for parameter in student.parameters()) < 1e-7


def test_the_shares_of_several_techniques_are_multiplied():
    plan = Distill(weight=0.75).plan(TrainingPlan(task_weight=0.5), make_run())
    assert plan.task_weight == pytest.approx(0.125)


def test_the_teacher_stays_as_it_is(teacher):
    run = make_run(teacher=teacher)
    before = deepcopy(run.teacher.state_dict())
    apply_techniques(make("mlp"), [Distill(), Epochs()], run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.teacher.state_dict().items())
    assert not any(module.training for module in run.teacher.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in run.teacher.parameters())


def test_a_student_with_few_labels_learns_from_what_its_teacher_says_of_the_rest(teacher):
    splits = digits()
    train = splits.train
    few = Columns(train.take(torch.arange(60)))
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    unlabelled = Columns({"image": train.column("image"), "label": train.column("label")[shuffled]})
    test = make_run()
    alone = apply_techniques(MLP(16), [Epochs(epochs=30, batch_size=20)], make_run(replace(splits, train=few)))
    taught = apply_techniques(
        MLP(16),
        [Epochs(epochs=20, batch_size=32), Distill(weight=1.0)],
        make_run(replace(splits, train=unlabelled), teacher=teacher),
    )
    assert test.evaluate(alone).value > 0.5
    assert test.evaluate(taught).value > test.evaluate(alone).value + 0.08


def test_a_teacher_for_other_classes_is_refused():
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(ModelError, match=r"\(10,\), its teacher \(7,\)"):
        apply_techniques(make("mlp"), [Distill(), Epochs()], make_run(teacher=other))


def test_without_classes_there_are_no_soft_targets():
    one = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(ModelError, match="less than two classes"):
        Distill().begin(one, make_run(teacher=one))


class Brightness(Classification):
    """The mean brightness of ten stripes of an image, as real numbers."""

    def loss(self, output, batch):
        return (output - self.target(batch)).square().mean()

    def target(self, batch):
        return batch["image"].flatten(1)[:, :60].unflatten(1, (10, 6)).mean(2)

    def metrics(self, logits):
        return {"mse": MeanSquaredError()}


def test_real_numbers_are_no_classes_and_are_taught_by_hints(teacher):
    run = make_run(teacher=teacher, task=Brightness())
    with pytest.raises(ModelError, match="real numbers, not classes") as refused:
        Distill().begin(ConvNet((8, 16)), run)
    assert "`weight: 0`" in refused.value.mend
    hints = Distill(weight=0.0, hints={"blocks.0": "blocks.0"})
    trained = apply_techniques(ConvNet((8, 16)), [hints, Epochs()], run)
    assert run.evaluate(trained).value < run.evaluate(ConvNet((8, 16))).value


def test_no_teacher_and_no_training_are_refused():
    with pytest.raises(RecipeError, match="needs a teacher"):
        check_together([Distill(), Epochs()], teacher=False)
    with pytest.raises(RecipeError, match="does nothing without training"):
        check_together([Distill()], teacher=True)
    with pytest.raises(ModelError, match="needs a teacher"):
        apply_techniques(make("mlp"), [Distill(), Epochs()], make_run())


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"temperature": 0}, "greater than 0"),
        ({"weight": 1.5}, "less than or equal to 1"),
        ({"weight": 0}, "plays no part"),
        ({"hint_weight": 1.0}, "without `hints`"),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields, why):
    with pytest.raises(ValidationError, match=why):
        Distill(**fields)


def hinted(
    student: nn.Module, teacher: nn.Module, hints: dict[str, str], **fields
) -> tuple[Distill, nn.Module, object]:
    run = make_run(teacher=teacher)
    distill = Distill(hints=hints, **fields)
    state = distill.begin(student, run)
    return distill, state, run


def test_a_hint_is_the_squared_error_through_a_map_of_the_channels(teacher):
    student = ConvNet((8, 16))
    distill, state, run = hinted(student, teacher, {"blocks.1": "blocks.1"}, weight=0.0, hint_weight=3.0)
    regressor = state.regressors[0]
    assert (regressor.linear.in_features, regressor.linear.out_features) == (16, 32)
    batch = next(iter(run.calibration()))
    term = distill.loss(batch, run.forward(student, batch), student, state, run)
    distill.finish(student, state, run)
    theirs = run.features(teacher, ["blocks.1"], [batch])["blocks.1"].outputs[0]
    seen = {}
    handle = student.blocks[1].register_forward_hook(lambda module, inputs, output: seen.update(v=output))
    run.forward(student, batch)
    handle.remove()
    convolution = nn.Conv2d(16, 32, 1)
    with torch.no_grad():
        convolution.weight.copy_(regressor.linear.weight[:, :, None, None])
        convolution.bias.copy_(regressor.linear.bias)
    expected = 3.0 * (convolution(seen["v"]) - theirs).square().mean()
    assert float(term.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_a_regressor_along_an_axis_is_a_1x1_convolution():
    regressor = Regressor(3, 5, 1)
    convolution = nn.Conv2d(3, 5, 1)
    with torch.no_grad():
        convolution.weight.copy_(regressor.linear.weight[:, :, None, None])
        convolution.bias.copy_(regressor.linear.bias)
    image = torch.randn(2, 3, 4, 6)
    assert torch.allclose(regressor(image), convolution(image), atol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "axis"),
    [
        ((2, 8, 4, 4), (2, 16, 4, 4), 1),
        ((2, 4, 4, 8), (2, 4, 4, 16), 3),
        ((2, 7, 8), (2, 7, 16), 2),
        ((2, 8, 7), (2, 16, 7), 1),
        ((2, 8), (2, 16), 1),
        ((2, 8, 4, 4), (2, 8, 4, 4), 1),
        ((2, 8, 8), (2, 8, 8), 2),
    ],
)
def test_the_channels_lie_where_the_features_may_differ(student, teacher, axis):
    assert channel_axis(torch.zeros(student), torch.zeros(teacher), "a", "b") == axis


def test_layers_of_other_resolutions_are_refused_by_name(teacher):
    student = make("conv")
    with pytest.raises(ModelError, match=r"'blocks\.1' gives .* where the teacher's 'blocks\.0' gives"):
        hinted(student, teacher, {"blocks.1": "blocks.0"})
    assert not any(module._forward_hooks for module in student.modules())
    with pytest.raises(ModelError, match=r"hints: the network has no module 'blocks\.7'"):
        hinted(student, teacher, {"blocks.7": "blocks.0"})
    assert not any(module._forward_hooks for module in student.modules())


def test_hints_bring_the_features_nearer_and_leave_no_hook(teacher, tmp_path):
    run = make_run(teacher=teacher)
    torch.manual_seed(0)
    student = ConvNet((8, 16))
    losses = []

    class Watched(Distill):
        def loss(self, batch, output, model, state, run):
            term = super().loss(batch, output, model, state, run)
            losses.append(float(term.detach()))
            return term

    hints = {"blocks.0": "blocks.0", "blocks.1": "blocks.1"}
    trained = apply_techniques(student, [Watched(hints=hints, weight=0.0), Epochs(epochs=3)], run)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    for network in (trained, run.teacher):
        assert not any(module._forward_hooks for module in network.modules())
    save(trained, tmp_path / "model", factory="tests.support:ConvNet", params={"widths": [8, 16]})
    loaded = load(tmp_path / "model", factory="tests.support:ConvNet")
    assert set(loaded.state_dict()) == set(student.state_dict())
    image = run.splits.test.columns["image"][:8]
    assert torch.equal(loaded(image), trained(image))


def test_a_training_that_fails_leaves_no_hook(teacher):
    run = make_run(teacher=teacher)
    student = ConvNet((8, 16))
    seen: list[int] = []

    class Watched(Distill):
        def after_step(self, model, state, progress, run):
            seen.append(sum(len(module._forward_hooks) for module in (*model.modules(), *run.teacher.modules())))

    with pytest.raises(TrainingError, match="the loss is"):
        run.train(student, [Watched(hints={"blocks.0": "blocks.0"}), Epochs(rate=1e30)])
    assert seen[0] == 2
    for network in (student, run.teacher):
        assert not any(module._forward_hooks for module in network.modules())


def test_an_evaluation_keeps_no_features_of_the_student(teacher):
    run = make_run(teacher=teacher)
    student = make("conv")
    distill = Distill(hints={"blocks.0": "blocks.0"})
    state = distill.begin(student, run)
    image = run.example[0][0]
    student(image)
    learned = state.guided["blocks.0"]
    assert learned.requires_grad
    run.evaluate(student)
    assert state.guided["blocks.0"] is learned
    distill.finish(student, state, run)


def test_a_network_that_takes_and_gives_a_dictionary_is_taught(teacher):
    run = make_run(teacher=DictNetAround(teacher), task=Classification(passing="dictionary"))
    distill = Distill(weight=1.0, hints={"net.blocks.1": "net.blocks.1"}, hint_weight=0.1)
    trained = apply_techniques(DictNet((8, 16)), [distill, Epochs(epochs=4)], run)
    assert run.evaluate(trained).value > 0.6


class DictNetAround(nn.Module):
    """A finished network behind a dictionary."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.net(inputs["image"])}


def test_the_same_seed_gives_the_same_bytes(teacher):
    run = make_run(teacher=teacher)
    student = Pair()
    fields = {"hints": {"block": "blocks.0"}, "hint_weight": 0.1}
    one, other = (apply_techniques(student, [Distill(**fields), Epochs()], run) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


class Pair(nn.Module):
    """One block and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(1, 4), nn.Linear(4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(image).mean((2, 3)))
