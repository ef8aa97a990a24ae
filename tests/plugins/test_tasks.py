"""Tasks: what goes in, what is judged, closed forms of loss and metrics, and labels that cannot be learned."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from compress_tasks import Classification, Regression
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score, top_k_accuracy_score
from torch import nn

from compress_core.data import Columns, Splits
from compress_core.errors import DataError, ModelError
from tests.support import ConvNet, DictNet, digits, make_run

Pair = namedtuple("Pair", ["hidden", "scores"])


@dataclass
class Output:
    logits: torch.Tensor
    hidden: int = 0


def batch(**columns):
    return {"image": torch.zeros(2, 3), "label": torch.tensor([0, 1]), **columns}


def columns_of(label, count=None):
    return Columns({"x": torch.zeros(count or len(label), 4), "label": label})


def test_every_column_but_the_label_goes_in_by_name_unless_columns_are_given():
    both = batch(area=torch.ones(2))
    arguments, keywords = Classification().inputs(both)
    assert [argument is both[name] for argument, name in zip(arguments, ("area", "image"), strict=True)] == [True, True]
    assert keywords == {}
    arguments, _ = Classification(input=("image", "area")).inputs(both)
    assert arguments[0] is both["image"] and arguments[1] is both["area"]
    (argument,), _ = Classification(input="image").inputs(both)
    assert argument is both["image"]


def test_columns_pass_as_keywords_and_as_a_dictionary():
    both = batch(area=torch.ones(2))
    assert Classification(passing="keyword").inputs(both) == ((), {"area": both["area"], "image": both["image"]})
    assert Classification(passing="dictionary", input="image").inputs(both) == (({"image": both["image"]},), {})


def test_a_missing_column_is_named_with_those_there_are():
    for act in (lambda task: task.inputs(batch()), lambda task: task.target({"image": torch.zeros(2)})):
        with pytest.raises(DataError, match=r"no column '(imgae|label)'") as error:
            act(Classification(input="imgae"))
        assert "image" in error.value.mend
    with pytest.raises(DataError, match="no column goes into the network"):
        Classification().inputs({"label": torch.zeros(2)})


@pytest.mark.parametrize(
    ("output", "place"),
    [
        (torch.ones(2, 3), None),
        ({"hidden": torch.zeros(1), "logits": torch.ones(2, 3)}, None),
        ({"scores": torch.ones(2, 3), "hidden": torch.zeros(1)}, None),
        ((torch.ones(2, 3), torch.zeros(1)), None),
        (Output(torch.ones(2, 3)), None),
        ({"logits": torch.zeros(1), "scores": torch.ones(2, 3)}, "scores"),
        (Pair(torch.zeros(1), torch.ones(2, 3)), "scores"),
        ((torch.zeros(1), torch.ones(2, 3)), 1),
        ({"a": torch.zeros(1), "b": torch.ones(2, 3)}, 1),
    ],
)
def test_the_judged_part_of_an_output_is_found_or_named(output, place):
    assert torch.equal(Classification(output=place).logits(output), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("output", "place", "mend"),
    [
        ({"hidden": torch.ones(1)}, "scores", "'hidden'"),
        ((torch.ones(1),), 3, "0"),
        (Output(torch.ones(1)), "scores", "'logits', 'hidden'"),
        (Output(torch.ones(1)), "hidden", "'logits', 'hidden'"),
        ({}, None, "it has none"),
        (None, None, "it has none"),
    ],
)
def test_a_missing_part_of_an_output_is_an_error_that_lists_the_parts(output, place, mend):
    with pytest.raises(ModelError) as error:
        Classification(output=place).logits(output)
    assert mend in error.value.mend


def test_the_smoothed_loss_is_its_closed_form():
    logits, label = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 6, 3, 3, 1])
    logs = logits.log_softmax(1)
    plain = -logs[torch.arange(5), label].mean()
    smoothed = 0.9 * plain + 0.1 * -logs.mean()
    given_batch = {"image": logits, "label": label}
    assert torch.allclose(Classification().loss(logits, given_batch), plain)
    assert torch.allclose(Classification(label_smoothing=0.1).loss(logits, given_batch), smoothed)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), examples=st.integers(2, 40))
def test_accuracies_agree_with_scikit_learn(seed, examples):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(examples, 6, generator=generator)
    label = torch.randint(6, (examples,), generator=generator)
    metrics = Classification(top_k=3).metrics(logits)
    assert list(metrics) == ["accuracy", "top_3"]
    assert float(metrics["accuracy"](logits, label)) == pytest.approx((logits.argmax(1) == label).double().mean())
    expected = top_k_accuracy_score(label.numpy(), logits.numpy(), k=3, labels=range(6))
    assert float(metrics["top_3"](logits, label)) == pytest.approx(expected)
    assert list(Classification(top_k=6).metrics(logits)) == ["accuracy"]


@pytest.mark.parametrize(
    ("label", "what"),
    [
        (torch.tensor([0, 1, 7, 9]), "the label 7 in row 2"),
        (torch.tensor([0, -1, 1, 1]), "the label -1 in row 1"),
        (torch.tensor([0.0, 1, 1, 1]), "float32"),
        (torch.tensor([[0, 1]] * 4), r"shape \(4, 2\)"),
        (torch.tensor([True, False, True, True]), "bool"),
    ],
)
def test_labels_that_are_no_classes_are_refused_with_column_value_and_row(label, what):
    with pytest.raises(DataError, match=what) as error:
        Classification().check(torch.zeros(2, 3), columns_of(label))
    assert error.value.where == "column 'label'"
    assert error.value.mend


def test_labels_that_are_classes_pass_the_check_and_other_outputs_do_not():
    Classification().check(torch.zeros(2, 3), columns_of(torch.tensor([0, 1, 2, 2])))
    for shape in ((2,), (2, 1), (2, 5, 3)):
        with pytest.raises(ModelError, match="classification takes"):
            Classification().check(torch.zeros(shape), columns_of(torch.tensor([0, 1])))


@pytest.mark.parametrize(("task", "width"), [(Classification(), 3), (Regression(), 1)])
def test_labels_are_checked_without_copying_the_other_columns(task, width, monkeypatch):
    monkeypatch.setattr(Columns, "take", lambda split, indices: pytest.fail("every column is copied"))
    task.check(torch.zeros(2, width), columns_of(torch.tensor([0, 1, 2])))
    with pytest.raises(DataError, match="the data have no column 'lable'"):
        type(task)(label="lable").check(torch.zeros(2, width), columns_of(torch.tensor([0, 1, 2])))


@pytest.mark.parametrize(("model", "fields"), [(ConvNet, {}), (DictNet, {"passing": "dictionary"})])
def test_the_quality_of_a_network_is_its_share_of_right_answers(model, fields):
    torch.manual_seed(0)
    net = model().eval()
    run = make_run(task=Classification(**fields))
    validation = digits().validation
    image, label = validation.column("image"), validation.column("label")
    with torch.no_grad():
        logits = net({"image": image})["logits"] if fields else net(image)
    quality = run.evaluate(net)
    assert quality.value == pytest.approx(float((logits.argmax(1) == label).double().mean()))
    assert (quality.name, quality.examples, quality.higher_is_better) == ("accuracy", 350, True)
    assert quality.low < quality.value < quality.high


def test_the_top_k_accuracy_is_measured_beside_the_quality():
    torch.manual_seed(0)
    net = ConvNet().eval()
    validation = digits().validation
    with torch.no_grad():
        logits = net(validation.column("image"))
    found = make_run(task=Classification(top_k=3)).evaluate(net)
    expected = top_k_accuracy_score(validation.column("label").numpy(), logits.numpy(), k=3, labels=range(10))
    assert found.name == "accuracy"
    assert found.also == {"top_3": pytest.approx(expected)}
    assert make_run(task=Classification()).evaluate(net).also == {}


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 3)])
def test_the_qualities_of_a_regression_agree_with_scikit_learn(shape):
    generator = torch.Generator().manual_seed(0)
    predicted, wanted = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    task = Regression()
    logits, target = task.logits(predicted), task.target({"label": wanted})
    metrics = task.metrics(logits)
    found = {name: float(metric(logits, target)) for name, metric in metrics.items()}
    pair = wanted.numpy(), predicted.numpy()
    assert found["mse"] == pytest.approx(mean_squared_error(*pair), rel=1e-5)
    assert found["mae"] == pytest.approx(mean_absolute_error(*pair), rel=1e-5)
    assert found["r2"] == pytest.approx(r2_score(*pair), rel=1e-4)
    assert float(task.loss(predicted, {"label": wanted})) == pytest.approx(found["mse"])


def test_a_column_of_numbers_does_not_broadcast_against_one_axis():
    predicted, wanted = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 2, 3])
    assert float(Regression().loss(predicted, {"label": wanted})) == 0
    assert float(Regression().loss(predicted.squeeze(1), {"label": wanted.unsqueeze(1)})) == 0


@pytest.mark.parametrize(("quality", "higher"), [("mse", False), ("mae", False), ("r2", True)])
def test_a_regression_is_compared_by_the_quality_asked_for_in_its_direction(quality, higher):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    split = Columns({"x": x, "label": x.sum(1)})
    run = make_run(Splits(split, split, split), task=Regression(quality=quality))
    bad, good = nn.Linear(4, 1), nn.Linear(4, 1)
    with torch.no_grad():
        good.weight.fill_(1.05)
        good.bias.zero_()
        bad.weight.fill_(-1)
    better, worse = run.evaluate(good), run.evaluate(bad)
    assert better.name == quality and better.higher_is_better is higher
    assert better.better_than(worse) and not worse.better_than(better)
    assert better.low <= better.value <= better.high
    with torch.no_grad():
        pair = split.column("label").numpy(), good(x).squeeze(1).numpy()
    known = {"mse": mean_squared_error(*pair), "mae": mean_absolute_error(*pair), "r2": r2_score(*pair)}
    assert {better.name: better.value, **better.also} == pytest.approx(known, rel=1e-4)


def test_a_metric_that_is_not_defined_for_the_examples_is_left_out_beside_the_quality_and_refused_as_the_quality():
    split = Columns({"x": torch.ones(1, 4), "label": torch.ones(1)})
    splits, net = Splits(split, split, split), nn.Linear(4, 1)
    assert set(make_run(splits, task=Regression()).evaluate(net).also) == {"mae"}
    with pytest.raises(ModelError, match="r2 is nan"):
        make_run(splits, task=Regression(quality="r2")).evaluate(net)


def test_a_regression_refuses_labels_that_are_no_numbers_and_outputs_of_another_shape():
    with pytest.raises(DataError, match=r"row 1 is nan; 1 of 3"):
        Regression().check(torch.zeros(2, 1), columns_of(torch.tensor([0.0, float("nan"), 1.0])))
    with pytest.raises(DataError, match=r"row 2 is \[0.0, inf\]"):
        Regression().check(torch.zeros(2, 2), columns_of(torch.tensor([[0.0, 1], [1, 1], [0, float("inf")]])))
    with pytest.raises(ModelError, match=r"values of shape \(3,\) for each example, column 'label' holds one number"):
        Regression().check(torch.zeros(2, 3), columns_of(torch.tensor([0.0, 1.0])))
    Regression().check(torch.zeros(2, 1), columns_of(torch.tensor([0, 1])))


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"label_smoothing": 1.0}, {"passing": "pickle"}, {"label": ""}])
def test_wrong_parameters_are_refused(fields):
    with pytest.raises(ValidationError):
        Classification(**fields)
