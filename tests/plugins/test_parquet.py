"""Parquet files: images, texts and numbers as tensors, subsets, and rows that are wrong."""

from __future__ import annotations

import json
import os
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from compress_data import Parquet
from compress_data.words import encode, vocabulary_of, words_of
from compress_tasks import Classification
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from compress_core.data import SPLITS
from compress_core.errors import DataError
from compress_core.run import Run

needs_data = pytest.mark.skipif("COMPRESS_DATA" not in os.environ, reason="COMPRESS_DATA names no folder of data sets")


def pixels(count=24, size=(4, 5), channels=3, seed=0):
    shape = (count, *size, channels) if channels > 1 else (count, *size)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(array, mode=None):
    picture = Image.fromarray(array)
    buffer = BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, metadata=None, **columns):
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def pictures(encoded):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": one, "path": None} for one in encoded], kind)


def images(path, array, labels=None):
    labels = [index % 3 for index in range(len(array))] if labels is None else labels
    write(path, image=pictures(map(png, array)), label=labels)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("COMPRESS_DATA", raising=False)
    return tmp_path


def source(folder, **fields):
    return Parquet(folder=str(folder), **fields)


# images


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back_exactly_and_are_normalized_by_channel(folder, channels):
    array = pixels(channels=channels)
    for name in SPLITS:
        images(folder / f"{name}.parquet", array)
    splits = source(folder, image="image", validation="validation.parquet").splits(0)
    expected = torch.from_numpy(array).float().reshape(24, 4, 5, channels).permute(0, 3, 1, 2) / 255
    for name in SPLITS:
        assert torch.equal(getattr(splits, name).column("image"), expected)
        assert getattr(splits, name).column("label").tolist() == [0, 1, 2] * 8
    mean, std = tuple(0.1 * i + 0.3 for i in range(channels)), tuple(0.1 * i + 0.2 for i in range(channels))
    normal = source(folder, image="image", mean=mean, std=std).splits(0).test.column("image")
    by_channel = [(expected[:, i] - mean[i]) / std[i] for i in range(channels)]
    assert torch.allclose(normal, torch.stack(by_channel, 1), atol=1e-6)


def test_images_of_other_modes_and_sizes_are_brought_to_the_ones_asked_for(folder):
    array = pixels(4, (6, 6))
    encoded = [png(array[0]), png(array[1], "L"), png(array[2], "P"), png(array[3], "RGBA")]
    for name in ("train", "test"):
        write(folder / f"{name}.parquet", image=pictures(encoded), label=[0, 1, 0, 1])
    colour = source(folder, image="image").splits(0).test.column("image")
    assert colour.shape == (4, 3, 6, 6)
    assert torch.equal(colour[1, 0], colour[1, 2])
    assert torch.equal(colour[3], torch.from_numpy(array[3]).permute(2, 0, 1) / 255)
    grey = source(folder, image="image", channels=1, size=(3, 4)).splits(0).test.column("image")
    assert grey.shape == (4, 1, 3, 4)
    expected = Image.fromarray(array[0]).convert("L").resize((4, 3), Image.Resampling.BILINEAR)
    assert torch.equal(grey[0, 0], torch.from_numpy(np.array(expected)) / 255)


@pytest.mark.parametrize(
    ("encoded", "what"),
    [
        (b"no image", "the image cannot be decoded"),
        (png(pixels(1)[0])[:60], "the image cannot be decoded"),
        (None, "there is no image"),
        (png(pixels(1, (3, 3))[0]), r"the image is 3x3, the first one 4x5"),
        (png(np.zeros((4, 5), dtype=np.uint16)), "of mode I"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_with_its_file_and_row(folder, encoded, what):
    images(folder / "train.parquet", pixels())
    good = [png(one) for one in pixels(4)]
    write(folder / "test.parquet", image=pictures([good[0], good[1], encoded, good[3]]), label=[0, 1, 2, 0])
    with pytest.raises(DataError, match=what) as error:
        source(folder, image="image").splits(0)
    assert "test.parquet, row 2" in str(error.value)
    assert error.value.mend


# splits, subsets, several files


def test_missing_splits_are_cut_with_the_classes_in_their_shares(folder):
    images(folder / "train.parquet", pixels(60))
    splits = source(folder, image="image", test=None, validation_share=0.2, test_share=0.3).splits(1)
    assert [len(getattr(splits, name)) for name in SPLITS] == [30, 12, 18]
    for name in SPLITS:
        counts = torch.bincount(getattr(splits, name).column("label"))
        assert counts.max() - counts.min() <= 2
    everything = torch.cat([getattr(splits, name).column("image") for name in SPLITS])
    assert len(everything.flatten(1).unique(dim=0)) == 60
    assert splits.about["rows"] == {"train": 30, "validation": 12, "test": 18}


def test_a_limit_takes_a_seeded_stratified_subset(folder):
    images(folder / "train.parquet", pixels(90))
    images(folder / "test.parquet", pixels(30))
    limited = source(folder, image="image", limit=30, test_limit=9, validation_share=0.2)
    splits, again, other = limited.splits(1), limited.splits(1), limited.splits(2)
    assert [len(getattr(splits, name)) for name in SPLITS] == [24, 6, 9]
    assert torch.bincount(splits.test.column("label")).tolist() == [3, 3, 3]
    assert torch.equal(splits.train.column("image"), again.train.column("image"))
    assert not torch.equal(splits.train.column("image"), other.train.column("image"))


def test_a_pattern_joins_files_and_errors_count_rows_within_each(folder):
    array = pixels(20)
    images(folder / "train-0.parquet", array[:12])
    images(folder / "train-1.parquet", array[12:], labels=[0, 0, 0, 0, 0, -1, 0, 0])
    images(folder / "test.parquet", array)
    joined = source(folder, train="train-*.parquet", image="image")
    assert [path.name for path in joined.files()] == ["train-0.parquet", "train-1.parquet", "test.parquet"]
    with pytest.raises(DataError, match=r"train-1.parquet, row 5: column 'label' is -1, no class; 1 of"):
        joined.splits(0)
    with pytest.raises(DataError, match="no file fits the pattern"):
        source(folder, train="t*.arrow", image="image").splits(0)


def test_a_pattern_may_be_absolute_and_one_that_makes_no_sense_is_named(folder):
    for name in ("train-0", "train-1", "test"):
        images(folder / f"{name}.parquet", pixels())
    absolute = source("elsewhere", train=f"{folder}/train-*.parquet", test=f"{folder}/test.parquet", image="image")
    assert absolute.files() == tuple(folder / f"{name}.parquet" for name in ("train-0", "train-1", "test"))
    assert absolute.splits(0).about["rows"] == {"train": 43, "validation": 5, "test": 24}
    with pytest.raises(DataError, match=r"'train-\*\*.parquet' is no pattern"):
        source(folder, train="train-**.parquet", image="image").files()


def test_a_relative_folder_lies_in_compress_data(folder, monkeypatch):
    (folder / "sets" / "mine").mkdir(parents=True)
    for name in ("train", "test"):
        images(folder / "sets" / "mine" / f"{name}.parquet", pixels())
    monkeypatch.setenv("COMPRESS_DATA", str(folder / "sets"))
    relative = source("mine", image="image")
    assert relative.files()[0] == folder / "sets" / "mine" / "train.parquet"
    assert relative.splits(0).about["source"] == "mine"
    absolute = source(folder / "sets" / "mine", image="image")
    assert absolute.files() == relative.files()
    assert absolute.splits(0).about == relative.splits(0).about


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"train": "none.parquet"}, "none.parquet: there is no such file"),
        ({"train": "text.parquet"}, "cannot be read as a parquet file"),
        ({"train": "empty.parquet"}, "it has no rows"),
        ({"image": "imgae"}, "it has no column 'imgae'"),
        ({"label": "lable"}, "it has no column 'lable'"),
        ({"image": "label"}, "column 'label' holds int64, no images"),
        ({"text": "image"}, "no text"),
        ({"image": None, "numbers": ("image",)}, "column 'image' holds struct"),
        ({"mean": (0.1, 0.2)}, "2 numbers for 3 channels"),
    ],
)
def test_what_is_wrong_with_files_and_columns_is_named(folder, fields, what):
    for name in ("train", "test"):
        images(folder / f"{name}.parquet", pixels())
    (folder / "text.parquet").write_text("hello")
    write(folder / "empty.parquet", image=pictures([]), label=pa.array([], pa.int64()))
    with pytest.raises(DataError, match=what) as error:
        source(folder, **{"image": "image", **fields}).splits(0)
    assert error.value.where
    if "no column" in what:
        assert "did you mean" in error.value.mend


# labels and numbers


def test_names_of_classes_are_numbered_in_alphabetical_order(folder):
    write(folder / "train.parquet", x=[0.0] * 6, label=["dog", "cat", "eel", "dog", "cat", "eel"])
    write(folder / "test.parquet", x=[0.0, 1.0], label=["eel", "cat"])
    splits = source(folder, numbers=("x",), validation_share=0.34).splits(0)
    assert splits.about["classes"] == ["cat", "dog", "eel"]
    assert splits.test.column("label").tolist() == [2, 0]
    write(folder / "test.parquet", x=[0.0, 1.0], label=["eel", "cow"])
    with pytest.raises(DataError, match=r"test.parquet, row 1: column 'label' is 'cow'") as error:
        source(folder, numbers=("x",), validation_share=0.34).splits(0)
    assert error.value.mend == "classes: cat, dog, eel"


def test_labels_with_a_dictionary_are_read_as_the_values_that_they_stand_for(folder):
    def coded(values):
        return pa.array(values).dictionary_encode()

    write(folder / "train-0.parquet", x=[0.0] * 6, label=coded(["dog", "cat"] * 3))
    write(folder / "train-1.parquet", x=[0.0] * 6, label=coded(["eel", "cat"] * 3))
    write(folder / "train-2.parquet", x=[0.0] * 6, label=["eel", "dog"] * 3)
    write(folder / "test.parquet", x=[0.0, 1.0], label=coded(["eel", "cat"]))
    splits = source(folder, train="train-*.parquet", numbers=("x",), validation_share=0.34).splits(0)
    assert splits.about["classes"] == ["cat", "dog", "eel"]
    assert splits.test.column("label").tolist() == [2, 0]
    assert torch.bincount(splits.validation.column("label")).tolist() == [2, 2, 2]
    for name in ("train", "test"):
        write(folder / f"{name}.parquet", x=[0.0] * 20, label=coded([4, 3] * 10))
    assert source(folder, numbers=("x",)).splits(0).test.column("label").tolist() == [4, 3] * 10


def test_names_that_hugging_face_wrote_into_the_file_are_kept(folder):
    features = {"info": {"features": {"label": {"names": ["plane", "car"], "_type": "ClassLabel"}}}}
    for name in ("train", "test"):
        write(folder / f"{name}.parquet", {"huggingface": json.dumps(features)}, x=[0.0] * 20, label=[0, 1] * 10)
    assert source(folder, numbers=("x",)).splits(0).about["classes"] == ["plane", "car"]


def test_numbers_and_lists_of_numbers_go_in_as_they_are_and_labels_to_predict_stay_numbers(folder):
    row = {"area": [0.5] * 20, "sides": [[1, 2, 3]] * 20, "price": [1.25] * 20}
    for name in ("train", "test"):
        write(folder / f"{name}.parquet", **row)
    test = source(folder, numbers=("area", "sides"), label="price").splits(0).test
    assert (test.column("area").dtype, test.column("area").shape) == (torch.float32, (20,))
    assert (test.column("sides").dtype, test.column("sides").shape) == (torch.int64, (20, 3))
    assert test.column("label").tolist() == row["price"]


@pytest.mark.parametrize(
    ("train", "test", "what"),
    [
        ([[1.0, 2, 3]] * 20, [[1.0, 2, 3, 4]] * 20, r"'x' is float32 \(4,\) in test and float32 \(3,\) in train"),
        ([1, 2] * 10, [1.5, 2] * 10, r"'x' is float32 \(\) in test and int64 \(\) in train"),
    ],
)
def test_splits_of_other_shapes_or_formats_are_refused(folder, train, test, what):
    write(folder / "train.parquet", x=train, label=[0, 1] * 10)
    write(folder / "test.parquet", x=test, label=[0, 1] * 10)
    with pytest.raises(DataError, match=what) as error:
        source(folder, numbers=("x",)).splits(0)
    assert error.value.where == "train.parquet"


def test_images_have_the_size_of_the_first_training_image_in_every_split(folder):
    images(folder / "train.parquet", pixels(24, (8, 8)))
    images(folder / "test.parquet", pixels(24, (16, 16)))
    with pytest.raises(DataError, match=r"test.parquet, row 0: the image is 16x16, the first one 8x8") as error:
        source(folder, image="image").splits(0)
    assert error.value.mend == "scale all of them: `size: [8, 8]`"
    assert source(folder, image="image", size=(8, 8)).splits(0).test.column("image").shape == (24, 3, 8, 8)


def test_labels_without_a_sign_are_numbers_of_classes_unless_they_are_too_large(folder):
    def write_both(labels):
        for name in ("train", "test"):
            write(folder / f"{name}.parquet", x=[0.0] * 20, label=pa.array(labels, pa.uint64()))

    write_both([0, 1] * 10)
    label = source(folder, numbers=("x",)).splits(0).test.column("label")
    assert (label.dtype, label.tolist()) == (torch.int64, [0, 1] * 10)
    write_both([0] * 19 + [2**63 + 1])
    with pytest.raises(DataError, match=f"label' is {2**63 + 1}, no class; "):
        source(folder, numbers=("x",)).splits(0)


@pytest.mark.parametrize(
    ("column", "values", "what"),
    [
        ("x", [0.0, float("nan"), 1.0], r"test.parquet, row 1 holds nan"),
        ("x", [0.0, 1.0, None], r"test.parquet, row 2: column 'x' is empty there"),
        ("label", [0, None, 1], r"test.parquet, row 1: column 'label' is empty there"),
        ("label", [0, 1, -5], r"test.parquet, row 2: column 'label' is -5"),
    ],
)
def test_missing_numbers_and_labels_are_named_with_file_and_row(folder, column, values, what):
    good = {"x": [0.0] * 10, "label": [0, 1] * 5}
    write(folder / "train.parquet", **good)
    write(folder / "test.parquet", **{**{name: value[:3] for name, value in good.items()}, column: values})
    with pytest.raises(DataError, match=what):
        source(folder, numbers=("x",)).splits(0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image": "image", "channels": 2},
        {"image": "image", "size": (0, 3)},
        {"image": "image", "std": (0.0,)},
        {"image": "image", "numbers": ("image",)},
        {"text": "text", "vocabulary": 2},
        {"image": "image", "limit": 1},
    ],
)
def test_wrong_parameters_are_refused(fields):
    with pytest.raises(ValidationError):
        Parquet(**fields)


# texts


def test_words_are_numbered_by_their_frequency_and_unknown_ones_are_one():
    texts = ["The cat, the dog!", "the cat"]
    vocabulary = vocabulary_of(texts, 6)
    assert vocabulary == ["<padding>", "<unknown>", "the", "cat", "!", ","]
    ids, mask = encode(["The dog, the CAT", "", "cat " * 9], vocabulary, 5)
    assert ids.tolist() == [[2, 1, 5, 2, 3], [1, 0, 0, 0, 0], [3] * 5]
    assert mask.tolist() == [[True] * 5, [True] + [False] * 4, [True] * 5]


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=8), length=st.integers(1, 12))
def test_a_text_is_found_again_in_its_numbers(texts, length):
    vocabulary = vocabulary_of(texts, 10_000)
    ids, mask = encode(texts, vocabulary, length)
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    for text, numbers, present in zip(texts, ids, mask, strict=True):
        words = words_of(text)[:length] or ["<unknown>"]
        assert [vocabulary[number] for number in numbers[present]] == words
        assert (numbers[~present] == 0).all() and present.any()


def test_the_vocabulary_comes_from_the_training_texts_alone(folder):
    write(folder / "train.parquet", text=["good film", "bad film"] * 10, label=[1, 0] * 10)
    write(folder / "test.parquet", text=["splendid film"], label=[1])
    splits = source(folder, text="text", length=3).splits(0)
    assert splits.about["vocabulary"] == ["<padding>", "<unknown>", "film", "bad", "good"]
    assert sorted(splits.train.columns) == ["ids", "label", "mask"]
    assert splits.test.column("ids").tolist() == [[1, 2, 0]]
    assert splits.test.column("mask").tolist() == [[True, True, False]]


# the real data


@pytest.mark.data
@needs_data
@pytest.mark.parametrize(
    ("folder", "image", "shape"), [("mnist", "image", (1, 28, 28)), ("cifar10", "img", (3, 32, 32))]
)
def test_the_real_images_have_their_shape_range_and_classes(folder, image, shape):
    splits = Parquet(folder=folder, image=image, limit=500, test_limit=200).splits(0)
    assert [len(getattr(splits, name)) for name in SPLITS] == [450, 50, 200]
    found = splits.test.column("image")
    assert found.shape[1:] == shape
    assert 0 <= found.min() < 0.05 and 0.95 < found.max() <= 1
    assert torch.bincount(splits.test.column("label")).min() >= 15


@pytest.mark.data
@pytest.mark.slow
@needs_data
def test_a_text_network_learns_the_real_sentences():
    from compress_zoo import TextTransformer

    splits = Parquet(folder="sst2", text="sentence", validation="validation.parquet", length=40).splits(0)
    assert [len(getattr(splits, name)) for name in SPLITS] == [6920, 872, 1821]
    torch.manual_seed(0)
    model = TextTransformer(length=40, width=32, layers=1, heads=2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    task = Classification()
    for chosen in torch.randperm(6920, generator=torch.Generator().manual_seed(0)).split(64):
        batch = splits.train.take(chosen)
        arguments, _ = task.inputs(batch)
        loss = task.loss(model(*arguments), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert Run(splits, task).evaluate(model).value > 0.7
