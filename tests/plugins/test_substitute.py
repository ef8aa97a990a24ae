"""Blocks replaced by cheaper ones that are distilled to their outputs."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from compress_export import Onnx
from compress_factorize import Substitute
from compress_factorize.blocks import Residual, begin_near, bottleneck, narrow, perceptron, separable
from compress_factorize.places import Place, old_layers, places_of, put
from compress_factorize.substitution import build, built_in, distil, errors_of, taught
from pydantic import ValidationError
from torch import nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ArtifactError, ModelError, TrainingError
from compress_core.lock import _within
from compress_core.measure import counts
from compress_core.recipe import ModelSpec, Step
from compress_core.stage import factories
from compress_core.testing.digits import Epochs
from tests.support import make, make_run

HERE = "tests.plugins.test_substitute"


def own_block(width=8):
    """A user's own factory."""
    return nn.Sequential(
        nn.Conv2d(16, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 32, 1)
    )


def half(width=8):
    """A factory of a block that gives too few channels."""
    return nn.Conv2d(16, 16, 1, 2)


@pytest.fixture(scope="module")
def trained():
    return apply_techniques(make("conv"), [Epochs(epochs=5)], make_run())


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make_block", "weights"),
    [
        (lambda: separable(8, 12, stride=2), 9 * 8 + 8 * 12),
        (lambda: bottleneck(8, 12, within=4, stride=2), 8 * 4 + 9 * 16 + 4 * 12),
        (lambda: narrow(8, 12, within=4, stride=2), 9 * 4 * (8 + 12)),
    ],
)
def test_blocks_for_images_have_the_shapes_and_weights_of_their_papers(make_block, weights):
    block = make_block()
    assert block(images(2, 8, 7, 6)).shape == (2, 12, 4, 3)
    assert sum(p.numel() for p in block.parameters() if p.ndim > 1) == weights


def test_blocks_for_features_have_two_matrices():
    block = perceptron(8, 12, within=3)
    assert block(images(2, 5, 8)).shape == (2, 5, 12)
    assert sum(p.numel() for p in block.parameters() if p.ndim > 1) == 3 * 20


def test_a_residual_block_adds_its_input():
    block = separable(8, 8, residual=True).eval()
    x = images(2, 8, 5, 5)
    for layer in block:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.zeros_(layer.weight)
    assert torch.equal(block(x), x)
    positive = separable(8, 8, residual=True, positive=True)
    assert isinstance(positive[0], Residual) and (positive(x) >= 0).all()
    assert (narrow(8, 8, within=2, positive=True)(x) >= 0).all()


@pytest.mark.parametrize("residual", [False, True])
def test_a_block_begins_with_the_mean_and_half_the_spread(residual):
    torch.manual_seed(0)
    x = images(64, 8, 9, 9)
    y = 3 * images(64, 8, 9, 9) + torch.arange(8.0)[:, None, None]
    block = separable(8, 8, residual=residual)
    begin_near(block, [(x[:24], y[:24]), (x[24:], y[24:])])
    wanted = y - x if residual else y
    found = block(x) - x if residual else block(x)
    torch.testing.assert_close(found.mean((0, 2, 3)), wanted.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.std((0, 2, 3)), wanted.std((0, 2, 3)) / 2, atol=1e-2, rtol=1e-2)
    features = perceptron(8, 8, within=4)
    begin_near(features, [(x.movedim(1, -1), y.movedim(1, -1))])
    assert torch.equal(features[-1].bias, y.movedim(1, -1).flatten(0, -2).mean(0))


def test_places_are_the_outermost_modules_that_fit():
    model = make("conv")
    assert places_of(model, ("blocks.*",)) == [Place("blocks.0", "blocks.0"), Place("blocks.1", "blocks.1")]
    assert places_of(model, ("blocks", "blocks.1")) == [Place("blocks", "blocks")]
    assert places_of(model, ("blocks.1.conv*",)) == [
        Place("blocks.1.conv1", "blocks.1.conv1"),
        Place("blocks.1.conv2", "blocks.1.conv2"),
    ]


def test_a_run_of_layers_is_one_place():
    model = make("mlp")
    (place,) = places_of(model, ("layers.1:4",))
    assert place == Place("layers.1", "layers.4") and str(place) == "layers.1:4"
    x = images(2, 64)
    assert torch.equal(
        old_layers(model, place)(x), model.layers[4](model.layers[3](model.layers[2](model.layers[1](x))))
    )
    run = make_run()
    (call,) = taught(model, [place], run, next(iter(run.calibration())))[place]
    assert call.arguments[0].shape == (64, 64) and torch.equal(call.output, old_layers(model, place)(*call.arguments))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("block.1",), "'block.1' in `paths` matches no module"),
        (("layers.4:1",), "no run of the children"),
        (("layers.1:9",), "no run of the children"),
        (("nowhere.1:9",), "no run of the children"),
        (("layers.1:3", "layers.2"), "overlap"),
        (("layers.1:3", "layers.1"), "layers.1:3 and layers.1 in `paths` overlap"),
        (("layers.1:3", "layers.1:4"), "layers.1:3 and layers.1:4 in `paths` overlap"),
    ],
)
def test_paths_that_mean_nothing_are_named(paths, message):
    with pytest.raises(ModelError, match=message):
        places_of(make("mlp"), paths)


@pytest.mark.parametrize("block", ["separable", "bottleneck", "narrow"])
def test_a_network_gets_smaller_and_survives_the_artifact(trained, block, tmp_path):
    said = []
    run = make_run(teller=said.append)
    within = {} if block == "separable" else {"width": 0.25}
    found = apply_techniques(trained, [Substitute(paths=("blocks.*",), block=block, epochs=1, **within)], run)
    assert counts(found, run.example).parameters < 0.6 * counts(trained, run.example).parameters
    assert counts(found, run.example).macs < 0.7 * counts(trained, run.example).macs
    assert "2 blocks replaced" in said[0] and "blocks.1 (error" in said[0]
    save(found, tmp_path / "model", factory="tests.support:ConvNet")
    loaded = load(tmp_path / "model", factory="tests.support:ConvNet")
    arguments, keywords = run.example
    with torch.no_grad():
        assert torch.equal(loaded(*arguments, **keywords), found(*arguments, **keywords))


def test_blocks_export(trained, tmp_path):
    run = make_run()
    found = apply_techniques(trained, [Substitute(paths=("blocks.*",), epochs=1)], run)
    Onnx().export(found, tmp_path, run.example)
    arguments, keywords = run.example
    with torch.no_grad():
        expected = found(*arguments, **keywords)
    torch.testing.assert_close(Onnx().load(tmp_path, threads=1)(*arguments, **keywords), expected, rtol=1e-4, atol=1e-4)


def test_the_block_learns_what_it_replaces(trained):
    run = make_run()
    after = []
    for epochs in (1, 12):
        said = []
        technique = Substitute(paths=("blocks.1",), block="narrow", epochs=epochs)
        found = apply_techniques(trained, [technique], replace(run, teller=said.append))
        after.append((float(said[0].split("(error ")[1].split("%")[0]), run.evaluate(found).value))
    (error_short, _), (error_long, quality_long) = after
    assert error_long < 0.75 * error_short
    assert quality_long > run.evaluate(trained).value - 0.1


def test_the_told_error_is_that_of_the_validation_split(trained):
    run = make_run()
    places = places_of(trained, ("blocks.1",))
    place = places[0]
    calls = [call for batch in run.validation() for call in taught(trained, places, run, batch)[place]]
    block = build(place, calls[0], *built_in(place, calls, "narrow", 0.5), run)
    told = distil(trained, {place: block}, run, epochs=2, batch_size=64, rate=1e-2)[place]
    block.eval()
    with torch.no_grad():
        lost = sum((block(call.arguments[0]) - call.output).square().sum() for call in calls)
    whole = sum(call.output.square().sum() for call in calls)
    assert told == pytest.approx(float((lost / whole).sqrt()), rel=1e-4)
    assert told == pytest.approx(errors_of(trained, {place: block}, run)[place])


def test_blocks_learn_the_same_alone_and_together(trained):
    run = make_run()
    both = apply_techniques(trained, [Substitute(paths=("blocks.*",), epochs=2)], run)
    for path in ("blocks.0", "blocks.1"):
        alone = apply_techniques(trained, [Substitute(paths=(path,), epochs=2)], run)
        for name, tensor in alone.get_submodule(path).state_dict().items():
            torch.testing.assert_close(both.get_submodule(path).state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_run_of_a_sequence_is_replaced_by_one_block(tmp_path):
    run = make_run()
    model = apply_techniques(make("mlp"), [Epochs(epochs=3)], run)
    found = apply_techniques(model, [Substitute(paths=("layers.1:3",), block="bottleneck", width=0.25, epochs=2)], run)
    assert list(found.layers._modules) == ["0", "1", "4", "5"]
    assert counts(found, run.example).parameters < 0.5 * counts(model, run.example).parameters
    save(found, tmp_path / "model", factory="tests.support:MLP")
    loaded = load(tmp_path / "model", factory="tests.support:MLP")
    (image,), _ = run.example
    with torch.no_grad():
        assert torch.equal(loaded(image), found(image))


def test_a_factory_of_the_users_own_is_built_trusted_by_name_and_rebuilt(trained, tmp_path):
    run = make_run()
    technique = Substitute(paths=("blocks.1",), block=f"{HERE}:own_block", params={"width": 4}, epochs=1)
    assert technique.imports() == (f"{HERE}:own_block",) and Substitute(paths=("a",)).imports() == ()
    found = apply_techniques(trained, [technique], run)
    assert found.blocks[1][0].out_channels == 4
    save(found, tmp_path / "model", factory="tests.support:ConvNet")
    with pytest.raises(ArtifactError, match="own_block' is not trusted"):
        load(tmp_path / "model", factory="tests.support:ConvNet")
    loaded = load(tmp_path / "model", factory="tests.support:ConvNet", trust=[f"{HERE}:own_block"])
    (image,), _ = run.example
    with torch.no_grad():
        assert torch.equal(loaded(image), found(image))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": f"{HERE}:half"}, r"blocks\.1.*gives \(\d+, 16, 4, 4\) where this one gives \(\d+, 32, 4, 4\)"),
        ({"block": "torch.nn:Linear", "params": {"in_features": 3, "out_features": 2}}, r"blocks\.1.*does not take"),
        ({"block": f"{HERE}:nothing"}, "no 'nothing' there"),
        ({"block": f"{HERE}:own_block", "params": {"depth": 3}}, "unexpected keyword argument 'depth'"),
    ],
)
def test_a_block_that_does_not_fit_is_an_error_that_names_the_place(trained, fields, message):
    with pytest.raises(ModelError, match=message):
        apply_techniques(trained, [Substitute(paths=("blocks.1",), **fields)], make_run())


def test_what_takes_more_than_a_tensor_needs_a_factory_of_the_users_own():
    with pytest.raises(ModelError, match=r"encoder\.layers\.0.*more than one tensor"):
        Substitute(paths=("encoder.layers.0",), block="narrow").apply(make("transformer"), make_run())
    with pytest.raises(ModelError, match=r"no block 'separable' from \(64, 64\) to \(64, 32\)"):
        Substitute(paths=("layers.1",)).apply(make("mlp"), make_run())


def test_a_part_of_a_transformer_layer_is_replaced_where_it_is_called():
    run, model = make_run(), make("transformer")
    with torch.no_grad():
        model.encoder.layers[0].linear1.weight.mul_(3)
    technique = Substitute(paths=("encoder.layers.*.linear1",), block="bottleneck", width=0.1, epochs=1)
    found = apply_techniques(model, [technique], run)
    assert isinstance(found.encoder.layers[0].linear1, nn.Sequential)
    (image,), _ = run.example
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(image), found.train()(image))


class Pyramid(nn.Module):
    """A head that is called at two sizes."""

    def __init__(self, numbers=torch.float32):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.out = nn.Linear(8, 10)
        self.numbers = numbers
        self.to(numbers)

    def forward(self, image):
        seen = self.stem(image.to(self.numbers))
        halves = nn.functional.avg_pool2d(seen, 2)
        return self.out(self.head(seen).mean((2, 3)) + self.head(halves).mean((2, 3))).float()


@pytest.mark.parametrize("numbers", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_block_that_is_called_at_two_sizes_is_replaced_in_the_numbers_of_the_network(numbers, tmp_path):
    torch.manual_seed(0)
    run, said = make_run(), []
    found = apply_techniques(Pyramid(numbers), [Substitute(paths=("head",), epochs=1)], make_run(teller=said.append))
    assert "1 block replaced" in said[0]
    assert {parameter.dtype for parameter in found.head.parameters()} == {numbers}
    save(found, tmp_path / "model", factory=f"{HERE}:Pyramid", params={"numbers": numbers})
    loaded = load(tmp_path / "model", factory=f"{HERE}:Pyramid")
    (image,), _ = run.example
    with torch.no_grad():
        assert torch.equal(loaded(image), found(image))


def test_a_block_that_is_no_cheaper_is_left_out_and_named(trained):
    said = []
    model = deepcopy(trained)
    found = Substitute(paths=("blocks.0.conv1",), block="narrow", width=1.0).apply(model, make_run(teller=said.append))
    assert said == ["substitute: nothing changed; no cheaper: blocks.0.conv1"]
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())


def test_the_same_seed_makes_the_same_blocks(trained):
    one, other = (apply_techniques(trained, [Substitute(paths=("blocks.1",), epochs=1)], make_run()) for _ in range(2))
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


def test_a_block_that_has_nothing_to_learn_is_put_in_place(trained):
    said = []
    technique = Substitute(paths=("blocks.0",), block="torch.nn:Identity")
    found = apply_techniques(trained, [technique], make_run(teller=said.append))
    assert isinstance(found.blocks[0], nn.Identity) and "blocks.0 (error" in said[0]


def test_a_block_that_diverges_is_an_error_that_names_the_place(trained):
    with pytest.raises(TrainingError, match=r"blocks\.1: the outputs of its block are no numbers"):
        Substitute(paths=("blocks.1",), block="narrow", learning_rate=1e30).apply(deepcopy(trained), make_run())


def test_a_block_that_stands_in_two_places_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[3].weight = model[1].weight
    with pytest.raises(ModelError, match=r"1:2: it shares '3\.weight'"):
        Substitute(paths=("1:2",), block="bottleneck").apply(model, make_run())


def test_put_leaves_the_others_where_they_are(trained):
    model = deepcopy(trained)
    put(model, Place("blocks.1", "blocks.1"), own_block())
    assert isinstance(model.blocks[0], type(trained.blocks[0])) and not model.blocks[1].training


def test_a_recipe_trusts_and_watches_the_factory_that_it_names(tmp_path):
    named = f"{HERE}:own_block"
    step = Step("thin", None, None, (Substitute(paths=("blocks.1",), block=named),))
    recipe = SimpleNamespace(model=ModelSpec(factory="tests.support:ConvNet"), steps={"thin": step})
    assert factories(recipe) == {"tests.support:ConvNet", named}
    assert _within(step) == {named: "pipeline.thin"}


@pytest.mark.parametrize(
    "fields",
    [
        {"paths": ()},
        {"paths": ("a",), "block": "seperable"},
        {"paths": ("a",), "params": {"width": 3}},
        {"paths": ("a",), "width": 0},
        {"paths": ("a",), "width": 0.5},
        {"paths": ("a",), "block": "a:b", "width": 0.5},
        {"paths": ("a",), "epochs": 0},
    ],
)
def test_wrong_parameters_are_refused(fields):
    with pytest.raises(ValidationError):
        Substitute(**fields)
