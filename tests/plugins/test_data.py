"""The digits, arrays, functions, and how examples are cut into splits."""

from __future__ import annotations

import random
import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch
from compress_data import Digits, Import, Npz
from compress_data.arrays import as_column
from compress_data.splitting import cut, stratified_order
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.datasets import load_digits

from compress_core.data import SPLITS, Columns, Splits, load_splits, save_splits
from compress_core.errors import DataError


def rows(splits):
    return torch.cat([getattr(splits, name).column("image").flatten(1) for name in SPLITS])


def arrays(count=40, **more):
    return {"image": np.arange(count * 4.0).reshape(count, 4), "label": np.arange(count) % 4, **more}


def returned(**params):
    """What a user's function returns in these tests."""
    return params


def drawn():
    return {"train": {"x": [[np.random.rand(), random.random()] for _ in range(20)]}}


def seeded(seed):
    return {"train": {"x": torch.rand(20, 2), "y": [[seed]] * 20}}


def failing(**params):
    raise KeyError("no such file")


def ready_made():
    part = Columns({"x": torch.zeros(2, 1)})
    return Splits(part, part, part, {"source": "mine"})


def ready_made_of(train, test):
    train, test = ({"x": torch.tensor(values, dtype=torch.float64)} for values in (train, test))
    return Splits(Columns(train), Columns(train), Columns(test))


def imported(data, **fields):
    return Import(factory="tests.plugins.test_data:returned", params=data, **fields).splits(0)


# cutting


@settings(max_examples=80, deadline=None)
@given(
    label=st.lists(st.integers(-2, 5), min_size=1, max_size=120),
    seed=st.integers(0, 99),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_every_stretch_of_the_order_holds_each_class_in_its_share(label, seed, bounds):
    classes = torch.tensor(label)
    order = stratified_order(classes, seed)
    assert sorted(order.tolist()) == list(range(len(label)))
    start, end = sorted(int(bound * len(label)) for bound in bounds)
    stretch = classes[order[start:end]]
    for kind in set(label):
        share = label.count(kind) / len(label)
        assert abs(int((stretch == kind).sum()) - share * (end - start)) <= 2


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(11, 200), shares=st.tuples(st.floats(0.01, 0.45), st.floats(0.01, 0.45)), seed=st.integers(0, 9)
)
def test_parts_have_the_wanted_sizes_and_share_no_example(count, shares, seed):
    parts = cut(torch.arange(count) % 3, shares, seed)
    assert [len(part) for part in parts[1:]] == [max(1, round(share * count)) for share in shares]
    assert sorted(torch.cat(parts).tolist()) == list(range(count))


def test_another_seed_gives_another_order_and_the_same_seed_the_same():
    label = torch.arange(200) % 10
    assert torch.equal(stratified_order(label, 1), stratified_order(label, 1))
    assert not torch.equal(stratified_order(label, 1), stratified_order(label, 2))


def test_too_few_examples_to_cut_from_are_an_error():
    with pytest.raises(DataError, match="2 examples are too few to cut 3 splits from"):
        cut(torch.zeros(2), (0.1, 0.1), 0)


# the digits


def test_the_digits_are_all_there_once_with_their_labels():
    splits = Digits().splits(3)
    bunch = load_digits()
    expected = sorted(zip(map(bytes, bunch.images.astype(np.uint8).reshape(1797, -1)), bunch.target, strict=True))
    pixels = (rows(splits) * 16).to(torch.uint8).numpy()
    labels = torch.cat([getattr(splits, name).column("label") for name in SPLITS]).numpy()
    assert sorted(zip(map(bytes, pixels), labels, strict=True)) == expected


def test_the_digits_are_images_in_zero_to_one_in_three_stratified_splits():
    splits = Digits().splits(0)
    assert [len(getattr(splits, name)) for name in SPLITS] == [989, 359, 449]
    whole = np.bincount(load_digits().target) / 1797
    for name in SPLITS:
        image, label = getattr(splits, name).column("image"), getattr(splits, name).column("label")
        assert image.dtype == torch.float32 and image.shape[1:] == (1, 8, 8)
        assert (float(image.min()), float(image.max())) == (0, 1)
        assert label.dtype == torch.int64
        assert np.abs(np.bincount(label) - whole * len(label)).max() <= 2
    assert splits.about["classes"] == list("0123456789")


def test_the_same_seed_gives_the_same_bytes_of_digits(tmp_path):
    hashes = []
    for index, seed in enumerate((0, 0, 1)):
        save_splits(Digits().splits(seed), tmp_path / str(index))
        files = sorted((tmp_path / str(index)).iterdir())
        hashes.append([sha256(file.read_bytes()).hexdigest() for file in files])
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_shares_of_the_digits_can_be_chosen_and_must_leave_something():
    splits = Digits(validation=0.1, test=0.5).splits(0)
    assert [len(getattr(splits, name)) for name in SPLITS] == [719, 180, 898]
    for fields in ({"validation": 0.5, "test": 0.5}, {"validation": 0}, {"test": 1}, {"share": 0.1}):
        with pytest.raises(ValidationError):
            Digits(**fields)


# arrays


@pytest.mark.parametrize(
    ("value", "dtype", "first"),
    [
        (np.array([0.5, 1.0]), torch.float32, 0.5),
        (np.array([1, 2], dtype=np.uint8), torch.int64, 1),
        (np.array([1, 2], dtype=">i4"), torch.int64, 1),
        (np.array([[1, 2]], dtype=np.int32), torch.int32, 1),
        (np.array([[[51]]], dtype=np.uint8), torch.float32, 0.2),
        (torch.tensor([1.5], dtype=torch.float16), torch.float16, 1.5),
        ([True, False], torch.bool, True),
        ([[1.0], [2.0]], torch.float32, 1.0),
    ],
)
def test_arrays_become_columns_of_the_formats_that_networks_take(value, dtype, first):
    column = as_column(value, "x")
    assert column.dtype == dtype
    assert column.flatten()[0].item() == pytest.approx(first)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (["cat", "dog"], "cannot be read as an array"),
        ([[1, 2], [3]], "cannot be read as an array"),
        ([None, 1], "cannot be read as an array"),
        (3.0, "single number"),
        ([1j], "complex"),
        (np.array([1, 2**63 + 1], dtype=np.uint64), "row 1 holds 9223372036854775809"),
        ([1.0, float("nan")], "row 1 holds nan; 1 of 2"),
        ([[1.0, 2.0], [3.0, float("-inf")]], "row 1 holds -inf"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_with_its_place(value, what):
    with pytest.raises(DataError, match=what) as error:
        as_column(value, "train, column 'x'")
    assert error.value.where == "train, column 'x'"
    assert error.value.mend


# import


def test_a_function_gives_its_splits_as_they_are():
    data = {"train": arrays(40), "validation": arrays(8), "test": arrays(12)}
    splits = imported(data)
    assert [len(getattr(splits, name)) for name in SPLITS] == [40, 8, 12]
    assert torch.equal(splits.train.column("image"), torch.arange(160.0).reshape(40, 4))
    assert Import(factory="tests.plugins.test_data:ready_made").splits(0).about == {"source": "mine"}


@pytest.mark.parametrize(
    ("test", "what"),
    [
        ([[1.0, float("nan")]], "test, column 'x': row 0 holds nan"),
        ([[1.0, 2.0, 3.0]], r"float32 \(3,\) in test"),
    ],
)
def test_splits_that_a_function_has_made_are_held_to_the_same(test, what):
    source = Import(factory="tests.plugins.test_data:ready_made_of", params={"train": [[1.0, 2.0]], "test": test})
    with pytest.raises(DataError, match=what):
        source.splits(0)
    sound = source.model_copy(update={"params": {"train": [[1.0, 2.0]], "test": [[3.0, 4.0]]}}).splits(0)
    assert sound.test.column("x").dtype == torch.float32


def test_missing_splits_are_cut_from_train_with_the_classes_in_their_shares():
    splits = imported({"train": arrays(200)}, validation=0.2, test=0.3)
    assert [len(getattr(splits, name)) for name in SPLITS] == [100, 40, 60]
    assert torch.bincount(splits.validation.column("label")).tolist() == [10] * 4
    assert sorted(rows(splits)[:, 0].tolist()) == list(range(0, 800, 4))
    only_test = imported({"train": arrays(200), "validation": arrays(8)}, test=0.25)
    assert [len(getattr(only_test, name)) for name in SPLITS] == [150, 8, 50]


def test_a_function_that_draws_from_numpy_and_random_gives_the_same_examples_again():
    def examples(seed):
        return Import(factory="tests.plugins.test_data:drawn").splits(seed).train.column("x")

    assert torch.equal(examples(5), examples(5))
    assert not torch.any(examples(5) == examples(6))


def test_a_function_with_a_parameter_seed_is_given_the_recipes():
    source = Import(factory="tests.plugins.test_data:seeded")
    one, same, other = source.splits(5), source.splits(5), source.splits(6)
    assert one.train.column("y")[0] == 5 and other.train.column("y")[0] == 6
    assert torch.equal(one.train.column("x"), same.train.column("x"))
    assert not torch.equal(one.train.column("x"), other.train.column("x"))
    assert Import(factory="tests.plugins.test_data:seeded", params={"seed": 9}).splits(5).train.column("y")[0] == 9
    assert source.imports() == ("tests.plugins.test_data:seeded",)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({"trian": {}}, "unknown split 'trian'"),
        ({"test": arrays()}, "there is no split 'train'"),
        ({"train": [1, 2]}, "train: it is list, no mapping of columns"),
        ({"train": {}}, "no mapping of columns"),
        ({"train": arrays(label2=np.zeros(39))}, "different lengths: .*'label2': 39"),
        ({"train": arrays(0)}, "train: it is empty"),
        ({"train": arrays(2)}, "2 examples are too few"),
        ({"train": arrays(), "test": arrays(area=np.zeros(40))}, "the test split has the columns"),
        ({"train": arrays(), "test": {**arrays(), "image": np.zeros((40, 5))}}, r"float32 \(5,\) in test"),
        ({"train": {**arrays(), "image": np.full((40, 2), np.nan)}}, "train, column 'image': row 0 holds nan"),
    ],
)
def test_what_a_function_gives_wrongly_is_named(data, what):
    with pytest.raises(DataError, match=what) as error:
        imported(data)
    assert str(error.value).startswith("tests.plugins.test_data:returned")


@pytest.mark.parametrize(
    ("factory", "what"),
    [
        ("tests.plugins.test_data:failing", "fails with KeyError"),
        ("tests.plugins.test_data:retruned", "did you mean 'returned'"),
        ("tests.plugins.no_such:make", "there is no module"),
        ("tests.plugins.test_data:__doc__", "is no function"),
        ("tests.plugins.test_data:arrays", "unknown split 'image'"),
    ],
)
def test_a_function_that_cannot_be_called_is_an_error_of_the_data(factory, what):
    with pytest.raises(DataError) as error:
        Import(factory=factory).splits(0)
    assert what in str(error.value)


# npz


def test_arrays_of_a_file_are_found_by_the_splits_before_their_names(tmp_path):
    data = {f"{split}_{name}": array for split in SPLITS for name, array in arrays(8).items()}
    np.savez(tmp_path / "data.npz", **data)
    source = Npz(path=str(tmp_path / "data.npz"))
    splits = source.splits(0)
    assert [len(getattr(splits, name)) for name in SPLITS] == [8, 8, 8]
    assert splits.test.column("label").tolist() == [0, 1, 2, 3] * 2
    assert source.files() == (tmp_path / "data.npz",)
    assert splits.about == {"source": "data.npz"}


def test_arrays_without_a_split_are_cut_and_survive_the_artifact(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays(100))
    splits = Npz(path=str(tmp_path / "data.npz"), validation=0.2, test=0.2).splits(0)
    assert [len(getattr(splits, name)) for name in SPLITS] == [60, 20, 20]
    save_splits(splits, tmp_path / "data")
    loaded = load_splits(tmp_path / "data")
    assert torch.equal(rows(loaded), rows(splits))
    assert torch.equal(loaded.test.column("label"), splits.test.column("label"))


def test_a_file_that_is_no_set_of_plain_arrays_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "mixed.npz", train_image=np.zeros((3, 2)), label=np.zeros(3))
    np.savez(tmp_path / "objects.npz", image=np.array([{"a": 1}], dtype=object))
    for name, what in [
        ("none.npz", "there is no such file"),
        ("text.npz", "no .npz file of plain arrays"),
        ("one.npy", "one array without a name"),
        ("mixed.npz", "the array 'label' belongs to no split"),
        ("objects.npz", "no .npz file of plain arrays"),
    ]:
        with pytest.raises(DataError, match=what) as error:
            Npz(path=str(tmp_path / name)).splits(0)
        assert error.value.where == str(tmp_path / name)


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path):
    path = tmp_path / "data.npz"
    image = np.random.default_rng(0).random((200, 8), dtype=np.float32)
    np.savez_compressed(path, image=image, label=np.arange(200) % 3)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            Npz(path=str(path)).splits(0)
        except DataError:
            refused += 1
    assert refused > len(whole) / 23 * 0.8


def test_the_packages_of_data_and_tasks_import_neither_torch_nor_numpy_nor_pyarrow():
    heavy = ("torch", "numpy", "pyarrow", "PIL", "sklearn", "torchmetrics")
    code = f"import sys, compress_data, compress_tasks; print(*[m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
