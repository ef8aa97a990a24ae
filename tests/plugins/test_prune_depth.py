"""Whole blocks and layers go: what is found, what it is worth, and that the network does without."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from compress_export import Onnx
from compress_prune import Prune
from compress_prune.blocks import influences, losses_without, turned
from compress_prune.depth import Block, drop_blocks, fading, find_blocks
from compress_zoo import ResNet20
from torch import nn
from torch.nn import functional as F

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ModelError
from compress_core.factory import build_model
from compress_core.parts import TrainingTechnique
from tests.core.channel_nets import OptionA, seeded
from tests.plugins.test_prune import Epochs
from tests.support import ConvNet, make, make_run


class Residual(nn.Module):
    """x + F(x), or relu of it, F of two layers with a norm between."""

    def __init__(self, width: int, *, relu: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, width)
        self.relu, self.gain = relu, gain

    def forward(self, x):
        y = x + self.two(torch.tanh(self.norm(self.one(x)))) * self.gain
        return F.relu(y) if self.relu else y


class Tower(nn.Module):
    """Blocks of many kinds behind one another."""

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.blocks, self.head = nn.Linear(64, 12), blocks, nn.Linear(12, 10)

    def forward(self, image):
        x = self.embed(image.flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Asking(Tower):
    """Asks its first block for its norm."""

    def forward(self, image):
        assert self.blocks[0].norm is not None
        return super().forward(image)


def tower(*blocks: nn.Module, kind: type[Tower] = Tower) -> Tower:
    return seeded(lambda: kind(nn.ModuleList(blocks)))


def found_in(model, skip=()):
    blocks, left = find_blocks(model, make_run(), set(skip))
    return {block.path: block for block in blocks}, {name: entry.reason for entry in left for name in entry.names}


def pruned(model, run=None, **fields):
    return apply_techniques(model, [Prune(**{"granularity": "depth", "amount": 0.5, **fields})], run or make_run())


def test_residual_blocks_are_found_by_what_they_do():
    found, left = found_in(ResNet20(inputs=1).eval())
    assert set(found) == {f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)} - {
        "layer2.0",
        "layer3.0",
    }
    assert not any(block.relu or block.leaves for block in found.values())
    assert left == dict.fromkeys(("layer2.0", "layer3.0"), "its output has another shape than its input")


def test_a_block_of_bare_functions_counts_and_one_with_a_padded_shortcut_does_not():
    found, left = found_in(seeded(OptionA))
    assert set(found) == {"blocks.0"}
    assert set(left) == {"blocks.1", "blocks.2"}


def test_the_innermost_blocks_count_and_leaves_within_them_do_not():
    inner = nn.Sequential(Residual(12), Residual(12))
    found, _ = found_in(tower(inner, nn.Sequential(nn.Linear(12, 12), nn.ReLU())))
    assert set(found) == {"blocks.0.0", "blocks.0.1", "blocks.1.0"}


def test_the_relu_behind_a_sum_stays_unless_its_input_is_never_negative():
    found, _ = found_in(tower(Residual(12, relu=True), Residual(12, relu=True), Residual(12)))
    assert [found[f"blocks.{index}"].relu for index in (0, 1, 2)] == [True, False, False]
    model = tower(Residual(12, relu=True), Residual(12, relu=True), Residual(12))
    aside = deepcopy(model)
    drop_blocks(model, list(found.values()))
    assert [type(block) for block in model.blocks] == [nn.ReLU, nn.Identity, nn.Identity]
    (image,), _ = make_run().example
    with fading(aside, list(found.values()), lambda without, whole: without):
        assert torch.equal(aside(image), model(image))


def test_a_member_of_a_list_that_is_asked_for_more_leaves_it():
    model = tower(Residual(12), Residual(12), kind=Asking)
    found, _ = found_in(model)
    assert [found[path].leaves for path in ("blocks.0", "blocks.1")] == [True, False]
    found, _ = found_in(make("transformer"))
    assert [found[f"encoder.layers.{index}"].leaves for index in (0, 1)] == [True, True]


def test_blocks_that_run_twice_or_hold_what_is_skipped_are_left_alone_and_named():
    block = Residual(12)
    found, left = found_in(tower(block, block, Residual(12), Residual(12)), skip={"blocks.3.one"})
    assert set(found) == {"blocks.2"}
    assert left == {"blocks.0": "it runs 2 times", "blocks.3": "blocks.3.one shall stay"}


def test_a_layer_between_others_can_go_and_the_first_and_last_cannot():
    found, left = found_in(make("mlp"))
    assert set(found) == {"layers.3"}
    assert set(left) == {"layers.1", "layers.5"}


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ModelError, match="no block that it could do without"):
        pruned(make("lstm"))


def test_influence_is_one_minus_the_cosine_of_what_goes_in_and_out():
    x = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    y = torch.tensor([[0.0, 2.0], [6.0, 8.0], [-1.0, -1.0]])
    assert torch.allclose(turned(x, y), torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64), atol=1e-6)
    images = torch.zeros(1, 2, 1, 3)
    images[0, :, 0] = x.t()
    other = torch.zeros(1, 2, 1, 3)
    other[0, :, 0] = y.t()
    assert torch.allclose(turned(images, other).flatten(), turned(x, y), atol=1e-6)


def test_influence_and_ablation_rank_blocks_by_how_much_they_do():
    model, run = tower(Residual(12, gain=0.3), Residual(12, gain=0.0), Residual(12, gain=2.0)), make_run()
    blocks, _ = find_blocks(model, run)
    scores = influences(model, [block.path for block in blocks], run)
    assert scores.argsort().tolist() == [1, 0, 2]
    assert float(scores[1]) == pytest.approx(0, abs=1e-6)
    risen = losses_without(model, {block.path: block.without for block in blocks}, run)
    assert float(risen[1]) == 0
    losses = []
    batches = list(run.calibration())
    for block in blocks:
        without = deepcopy(model)
        drop_blocks(without, [block])
        with torch.no_grad():
            one, other = (
                sum(float(run.task.loss(run.forward(net, batch), batch)) for batch in batches) / len(batches)
                for net in (without, model)
            )
        losses.append(one - other)
    assert risen.tolist() == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize(
    ("criterion", "gone"), [(None, {0, 2}), ("influence", {0, 2}), ("l1", {1, 3}), ("taylor", {0, 2})]
)
def test_the_blocks_that_score_least_go(criterion, gone):
    model = tower(Residual(12, gain=0.0), Residual(12), Residual(12, gain=0.0), Residual(12))
    with torch.no_grad():
        for index in (1, 3):
            model.blocks[index].one.weight *= 0.1
            model.blocks[index].two.weight *= 0.5
    small = pruned(model, criterion=criterion)
    assert {index for index, block in enumerate(small.blocks) if isinstance(block, nn.Identity)} == gone


@pytest.mark.parametrize("schedule", ["gradual", "one-shot"])
def test_a_network_without_blocks_that_do_nothing_computes_the_same(schedule):
    model, run = tower(Residual(12, gain=0.0), Residual(12), Residual(12, gain=0.0)), make_run()
    small = pruned(model, run, amount=0.6, criterion="influence", schedule=schedule)
    (image,), _ = run.example
    assert torch.equal(small(image), model(image))
    assert sum(p.numel() for p in small.blocks.parameters()) == sum(p.numel() for p in model.blocks[1].parameters())


def test_while_training_blocks_fade_to_nothing_and_their_share_follows_the_ramp():
    class Look(TrainingTechnique):
        name = "look"
        seen: Any

        @torch.no_grad()
        def after_step(self, model, state, progress, run):
            x = torch.ones(1, 12)
            block = model.blocks[0]
            whole = Residual.forward(block, x)
            self.seen.append((progress, float(((block(x) - x) / (whole - x)).mean())))

    seen: list[tuple[float, float]] = []
    model = tower(Residual(12, gain=0.1), Residual(12, gain=3.0))
    technique = Prune(granularity="depth", amount=0.5, criterion="influence", start=0.2, end=0.6)
    small = apply_techniques(model, [technique, Epochs(epochs=2), Look(seen=seen)], make_run())
    for progress, stays in seen:
        wanted = (1 - min(1.0, max(0.0, (progress - 0.2) / 0.4))) ** 3
        assert stays == pytest.approx(wanted, abs=0.04)
    assert seen[-1][1] == 0
    assert isinstance(small.blocks[0], nn.Identity)
    assert all(not module._forward_hooks for module in small.modules())


def test_hooks_are_taken_away_when_the_training_fails():
    class Fail(TrainingTechnique):
        name = "fail"
        nets: Any

        def after_step(self, model, state, progress, run):
            self.nets.append(model)
            raise RuntimeError("no such luck")

    nets: list[nn.Module] = []
    technique = Prune(granularity="depth", amount=0.5, criterion="influence")
    with pytest.raises(RuntimeError, match="no such luck"):
        apply_techniques(tower(Residual(12), Residual(12)), [technique, Epochs(epochs=1), Fail(nets=nets)], make_run())
    assert all(not module._forward_hooks for module in nets[0].modules())


def test_one_layer_of_an_encoder_stays_whatever_the_amount():
    said: list[str] = []
    model = build_model("tests.support:Transformer", {"layers": 3}, seed=0)
    small = pruned(model, make_run(teller=said.append), amount=0.9, criterion="influence")
    assert len(small.encoder.layers) == 1
    assert said[-1].startswith("prune: 2 blocks went")


def test_an_amount_of_no_block_changes_nothing_and_says_so():
    said: list[str] = []
    model = make("conv")
    same = pruned(model, make_run(teller=said.append), amount=0.3)
    assert "nothing changed" in said[-1]
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("factory", ["ResNet20", "Transformer"])
@pytest.mark.parametrize("schedule", ["gradual", "one-shot"])
def test_a_shallower_network_learns_the_digits_comes_back_and_is_pruned_again(factory, schedule, tmp_path):
    run = make_run()
    place, params = (
        ("compress_zoo:ResNet20", {"inputs": 1})
        if factory == "ResNet20"
        else (f"tests.support:{factory}", {"layers": 4})
    )
    technique = Prune(granularity="depth", amount=0.5, criterion="influence", schedule=schedule)
    epochs = Epochs(epochs=2 if factory == "ResNet20" else 3)
    small = apply_techniques(build_model(place, params, seed=0), [technique, epochs], run)
    assert run.evaluate(small).value >= 0.5
    assert len(find_blocks(small, run)[0]) == (3 if factory == "ResNet20" else 2)
    save(small, tmp_path / "model", factory=place, params=params)
    loaded = load(tmp_path / "model", factory=place)
    (image,), _ = run.example
    assert torch.equal(loaded(image), small(image))
    again = pruned(loaded, run, criterion="influence")
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in small.parameters())


def test_channels_heads_and_blocks_go_in_one_network_one_after_the_other():
    run = make_run()
    model = build_model("tests.support:Transformer", {"layers": 2, "heads": 4}, seed=0)
    for granularity in ("depth", "head", "channel"):
        model = apply_techniques(model, [Prune(granularity=granularity, amount=0.5)], run)
    (layer,) = model.encoder.layers
    assert (layer.self_attn.num_heads, layer.linear1.out_features) == (2, 16)


def test_a_network_without_blocks_runs_in_onnxruntime(tmp_path):
    small = pruned(seeded(ConvNet), amount=0.9)
    assert isinstance(small.blocks[0], nn.Identity)
    image = torch.rand(5, 1, 8, 8)
    exporter = Onnx()
    exporter.export(small, tmp_path, ((image[:2],), {}))
    with torch.no_grad():
        assert torch.allclose(exporter.load(tmp_path, 1)(image), small(image), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"criterion": "scale"}, "does not rank blocks"),
        ({"criterion": "influence", "granularity": "channel"}, "granularity: depth"),
        ({"allocation": "global"}, "leave `allocation` out"),
        ({"multiple": 8}, "`multiple` counts channels"),
        ({"schedule": "lottery"}, "blocks fade or go at once"),
    ],
)
def test_parameters_that_do_not_fit_blocks_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        Prune(**{"granularity": "depth", "amount": 0.5, **fields})


def test_two_blocks_that_cannot_go_together_are_refused_by_name():
    class Needing(Tower):
        """Wants one real block at least."""

        def forward(self, image):
            assert any(isinstance(block, Residual) for block in self.blocks)
            return super().forward(image)

    with pytest.raises(ModelError, match=r"blocks blocks\.0, blocks\.1 cannot go together"):
        pruned(tower(Residual(12), Residual(12), kind=Needing), amount=0.9)


def test_a_block_is_known_by_its_list():
    assert Block("encoder.layers.3").parent == "encoder.layers"
    assert Block("3").parent == ""
