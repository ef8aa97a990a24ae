"""Dead units in networks as users write them: they go, or what keeps them is said."""

from __future__ import annotations

import pytest
import torch
from compress_clip import Clip
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from tests.core import channel_nets
from tests.core.channel_nets import Viewed, ViewedByNumber, ViewedByProduct, seeded
from tests.support import digits, make, make_run

HARD = sorted(
    name
    for name, found in vars(channel_nets).items()
    if isinstance(found, type) and found.__module__ == channel_nets.__name__ and name != "PaddedBlock"
)


class Net(nn.Module):
    """Layers that are called as the subclass says."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(64, 20), nn.Linear(20, 12), nn.Linear(12, 10)
        self.bare, self.count = nn.Parameter(torch.randn(20, 10)), nn.Linear(1, 12)

    def forward(self, image):
        return self.head(F.relu(self.middle(F.relu(self.one(image.flatten(1))))))


class ByKeyword(Net):
    def middle(self, x):
        return self.two(input=x)


class Counted(Net):
    """A function that no weight belongs to reads the units too."""

    def middle(self, x):
        return self.two(x) + self.count((x > 0.5).float().sum(1, keepdim=True))


class Bare(Net):
    """A bare parameter reads the units."""

    def forward(self, image):
        return F.relu(self.one(image.flatten(1))) @ self.bare


def starved(build: type[Net], bias: float = 0.7) -> Net:
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        model.one.weight[[1, 2]] = 0
        model.one.bias[[1, 2]] = bias
    return model


def clipped(model: nn.Module) -> tuple[nn.Module, list[str]]:
    said: list[str] = []
    result = apply_techniques(model, [Clip(threshold=0.0)], make_run(teller=said.append))
    image = digits().validation.take(torch.arange(50))["image"]
    with torch.no_grad():
        assert torch.allclose(result.eval()(image), model.eval()(image), atol=1e-5)
    return result, said[1:]


@pytest.mark.parametrize("name", HARD)
def test_a_network_that_is_hard_to_cut_computes_the_same_without_its_dead_units(name):
    model = apply_techniques(seeded(getattr(channel_nets, name)), [Clip(share=0.95, adjust=False)], make_run())
    result, said = clipped(model)
    sizes = [sum(parameter.numel() for parameter in net.parameters()) for net in (model, result)]
    assert (sizes[1] < sizes[0]) == any("dead units went" in text for text in said)


def test_a_layer_that_is_called_by_keyword_takes_a_constant_in():
    result, said = clipped(starved(ByKeyword))
    assert result.one.out_features == 18
    assert said == ["clip: 2 dead units went (one 20 to 18); 2 of them left a constant in the next bias"]


def test_units_that_a_function_reads_too_stay_if_they_say_something():
    result, said = clipped(starved(Counted))
    assert result.one.out_features == 20
    assert said == ["clip: dead units stay in one: what they say is used by more than the layers that read them"]
    assert clipped(starved(Counted, bias=-0.7))[0].one.out_features == 18


def test_units_in_question_do_not_keep_the_others():
    model = starved(Counted)
    with torch.no_grad():
        model.two.weight[4] = 0
        model.count.weight[4] = 0
    result, said = clipped(model)
    assert (result.one.out_features, result.two.out_features) == (20, 11)
    assert len(said) == 2


def test_dead_units_that_belong_to_no_group_are_named():
    result, said = clipped(starved(Bare))
    assert result.one.out_features == 20
    assert said == [
        "clip: dead units stay in one: they are outputs of the network, or go where no layer can be seen to read them"
    ]
    model = make("mlp")
    with torch.no_grad():
        model.layers[5].weight[3] = 0
    assert clipped(model)[1][0].startswith("clip: dead units stay in layers.5: they are outputs of the network")


@pytest.mark.parametrize("build", [Viewed, ViewedByProduct])
def test_a_number_that_a_user_keeps_of_the_units_is_lowered_with_them(build, tmp_path):
    model = seeded(build)
    with torch.no_grad():
        model.conv.weight[[1, 5]] = 0
        model.conv.bias[[1, 5]] = torch.tensor([-0.7, 0.7])
    result, said = clipped(model)
    assert (result.conv.out_channels, result.hidden.in_features) == (10, 40)
    assert said == ["clip: 2 dead units went (conv 12 to 10); 1 of them left a constant in the next bias"]
    factory = f"tests.core.channel_nets:{build.__name__}"
    save(result, tmp_path / "model", factory=factory)
    image = digits().validation.take(torch.arange(9))["image"]
    assert torch.equal(load(tmp_path / "model", factory=factory)(image), result(image))


def test_units_that_a_number_in_the_code_counts_stay_and_are_named():
    model = seeded(ViewedByNumber)
    with torch.no_grad():
        model.conv.weight[1] = 0
    result, said = clipped(model)
    assert result.conv.out_channels == 12
    assert said[0].startswith("clip: dead units stay in conv: the network does not run without them")
