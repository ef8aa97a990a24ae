"""Committees: the mean of several networks, as one network and one artifact."""

from __future__ import annotations

from math import log

import pytest
import torch
from compress_distill import Distill, Ensemble
from compress_distill.committee import Committee, log_mean_probability, members_of, part_of
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ArtifactError, ModelError
from compress_core.factory import build_model
from compress_core.masks import hold_zeros, masked_tensors
from compress_core.run import as_teacher
from tests.plugins.test_distill import Brightness, DictNetAround, Epochs
from tests.support import Classification, ConvNet, digits, make_run

FACTORIES = ("tests.support:MLP", "tests.support:ConvNet")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Networks that a test makes by itself are the same in any order of the tests."""
    torch.manual_seed(0)


def built(factory: str, seed: int, **params) -> nn.Module:
    return build_model(factory, params, seed=seed)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """Two networks that know the digits, from two factories."""
    mlp = apply_techniques(built(FACTORIES[0], 0, width=24), [Epochs(epochs=5)], make_run())
    conv = apply_techniques(built(FACTORIES[1], 1, widths=(8, 16)), [Epochs(epochs=2)], make_run())
    return mlp, conv


def join(model: nn.Module, teacher: nn.Module, **fields) -> nn.Module:
    return apply_techniques(model, [Ensemble(**fields)], make_run(teacher=teacher))


def test_the_answer_is_the_mean_of_the_probabilities(pair):
    image = digits().test.column("image")[:32]
    committee = join(*pair)
    expected = (pair[0](image).softmax(-1) + pair[1](image).softmax(-1)) / 2
    assert torch.allclose(committee(image).softmax(-1), expected, atol=1e-6)
    assert torch.allclose(committee(image), expected.log(), atol=1e-5)


def test_a_mean_worked_out_by_hand():
    # (1/4, 3/4) and (3/4, 1/4) are undecided together, (1/4, 3/4) and (1/2, 1/2) give (3/8, 5/8)
    one, other, even = (torch.tensor([[1.0, ratio]]).log() for ratio in (3.0, 1 / 3, 1.0))
    assert log_mean_probability([one, other])[0].tolist() == pytest.approx([log(0.5), log(0.5)])
    assert log_mean_probability([one, even])[0].tolist() == pytest.approx([log(3 / 8), log(5 / 8)])


def test_very_sure_members_do_not_overflow():
    mean = log_mean_probability([torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])])
    assert mean[0].tolist() == pytest.approx([log(0.5), log(0.5)])


def test_every_member_has_the_same_weight_however_they_came_together(pair):
    third = built(FACTORIES[0], 5)
    image = digits().test.column("image")[:16]
    left = join(join(*pair), third)
    right = join(third, join(*pair))
    expected = torch.stack([network.eval()(image).softmax(-1) for network in (*pair, third)]).mean(0)
    for committee in (left, right):
        assert len(members_of(committee)) == 3
        assert torch.allclose(committee(image).softmax(-1), expected, atol=1e-6)


def test_two_are_about_as_good_as_the_better_and_far_better_than_the_worse(pair):
    run = make_run()
    alone = [run.evaluate(network).value for network in pair]
    together = run.evaluate(join(*pair)).value
    assert together > max(alone) - 0.02
    assert together > min(alone)


def test_members_from_two_factories_survive_the_artifact(pair, tmp_path):
    committee = join(*pair)
    hold_zeros(committee.members[0].layers[1], "weight")
    save(committee, tmp_path / "model", factory=FACTORIES[0], params={"width": 24})
    loaded = load(tmp_path / "model", trust=FACTORIES)
    image = digits().test.column("image")[:16]
    assert type(loaded) is Committee
    assert torch.equal(loaded(image), committee(image))
    assert masked_tensors(loaded) == ["members.0.layers.1.weight"]
    save(loaded, tmp_path / "again", factory=FACTORIES[0], params={"width": 24})
    for file in ("manifest.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "model" / file).read_bytes()


def test_a_loaded_committee_joins_another_network_and_goes_on(pair, tmp_path):
    save(join(*pair), tmp_path / "two", factory=FACTORIES[0], params={"width": 24})
    three = join(load(tmp_path / "two", trust=FACTORIES), built(FACTORIES[1], 9))
    save(three, tmp_path / "three", factory=FACTORIES[0], params={"width": 24})
    loaded = load(tmp_path / "three", trust=FACTORIES)
    image = digits().test.column("image")[:16]
    assert len(loaded.members) == 3
    assert torch.equal(loaded(image), three(image))


def test_every_members_factory_must_be_trusted(pair, tmp_path):
    save(join(*pair), tmp_path / "model", factory=FACTORIES[0], params={"width": 24})
    with pytest.raises(ArtifactError, match=r"'tests\.support:ConvNet' is not trusted"):
        load(tmp_path / "model", factory=FACTORIES[0])


def test_a_member_that_nobody_can_rebuild_is_refused_by_its_path(pair, tmp_path):
    stranger = join(pair[0], ConvNet())
    with pytest.raises(ArtifactError, match=r"'members\.1' has the type .*ConvNet"):
        save(stranger, tmp_path / "model", factory=FACTORIES[0], params={"width": 24})
    assert not (tmp_path / "model").exists()


def test_all_members_train_on(pair):
    committee = join(*pair)
    trained = apply_techniques(committee, [Epochs()], make_run())
    for member, before in zip(trained.members, committee.members, strict=True):
        assert not torch.equal(next(member.parameters()), next(before.parameters()))


def test_its_parts_stay_as_they_are(pair):
    teacher = as_teacher(pair[1])
    run = make_run(teacher=pair[1])
    committee = apply_techniques(pair[0], [Ensemble()], run)
    assert not any(parameter.requires_grad for parameter in run.teacher.parameters())
    assert {id(p) for p in committee.parameters()}.isdisjoint(
        {id(p) for network in (*pair, run.teacher) for p in network.parameters()}
    )
    assert all(torch.equal(a, b) for a, b in zip(run.teacher.parameters(), teacher.parameters(), strict=True))


def test_a_committee_teaches(pair):
    run = make_run(teacher=join(*pair))
    student = apply_techniques(built(FACTORIES[0], 3), [Distill(weight=1.0), Epochs(epochs=8)], run)
    assert run.evaluate(student).value > 0.7


@pytest.mark.parametrize("kind", ["dictionary", "tuple"])
def test_the_logits_are_replaced_within_what_the_first_member_gives(pair, kind):
    class Around(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, image: torch.Tensor):
            logits = self.net(image)
            return (image, logits) if kind == "tuple" else {"image": image, "logits": logits}

    class Second(Classification):
        def logits(self, output):
            return output[1] if kind == "tuple" else output["logits"]

    run = make_run(teacher=Around(pair[1]), task=Second())
    committee = apply_techniques(Around(pair[0]), [Ensemble()], run)
    image = digits().test.column("image")[:4]
    output = committee(image)
    expected = ((pair[0](image).softmax(-1) + pair[1](image).softmax(-1)) / 2).log()
    assert torch.allclose(run.task.logits(output), expected, atol=1e-5)
    assert (output[0] if kind == "tuple" else output["image"]) is image


def test_a_dictionary_goes_in_whole(pair):
    run = make_run(teacher=DictNetAround(pair[1]), task=Classification(passing="dictionary"))
    committee = apply_techniques(DictNetAround(pair[0]), [Ensemble()], run)
    assert committee.part == "logits"
    assert run.evaluate(committee).value > 0.8


def test_outputs_are_averaged_where_there_are_no_classes():
    one, other = (nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval() for _ in range(2))
    with pytest.raises(ModelError, match="less than two classes"):
        Ensemble().apply(one, make_run(teacher=other))
    committee = Ensemble(average="outputs").apply(one, make_run(teacher=other))
    image = digits().test.column("image")[:4]
    assert torch.allclose(committee(image), (one(image) + other(image)) / 2)


def test_the_mean_of_real_numbers_is_that_of_the_outputs_not_of_probabilities(pair):
    run = make_run(teacher=pair[1], task=Brightness())
    with pytest.raises(ModelError, match="real numbers, not classes") as refused:
        Ensemble().apply(pair[0], run)
    assert refused.value.mend == "write `average: outputs`"
    image = digits().test.column("image")[:4]
    committee = Ensemble(average="outputs").apply(pair[0], run)
    assert torch.allclose(committee(image), (pair[0](image) + pair[1](image)) / 2)


def test_networks_for_other_classes_or_with_other_outputs_are_refused(pair):
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(ModelError, match=r"\(10,\), its teacher \(7,\)"):
        join(pair[0], other)
    with pytest.raises(ModelError, match="different parts"):
        Ensemble().apply(pair[0], make_run(teacher=Tupled(pair[1]), task=Either()))
    with pytest.raises(ModelError, match="cannot be found"):
        part_of({"scores": torch.zeros(2, 3)}, torch.zeros(2, 3))
    with pytest.raises(ModelError, match="needs a teacher"):
        Ensemble().apply(pair[0], make_run())


class Tupled(nn.Module):
    """Its logits are the first of one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.net(image),)


class Either(Classification):
    """Takes what there is."""

    def logits(self, output):
        return output[0] if isinstance(output, tuple) else output
