"""Pictures changed at random while a network trains: the maps in closed form, who sees them, and what they teach."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from compress_data import Augment
from compress_data.warping import Most, affine_maps, maps, warped
from compress_distill import Distill
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from compress_core.applying import apply_techniques
from compress_core.data import Columns, Splits
from compress_core.errors import DataError
from compress_core.measure import quality
from compress_core.parts import Change, TrainingTechnique
from compress_core.run import as_teacher
from compress_core.testing import Epochs, check_technique
from tests.support import make, make_run


def one_map(turn=0.0, right=0.0, down=0.0, scale=1.0, shear=0.0, ratio=1.0):
    return affine_maps(
        torch.tensor([turn]),
        torch.tensor([[right, down]]),
        torch.tensor([scale]),
        torch.tensor([shear]),
        ratio,
    )


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Eyes(TrainingTechnique):
    """Notes what the task's loss sees."""

    name = "eyes"
    seen: ClassVar[list[torch.Tensor]] = []

    @property
    def changes(self):
        return frozenset({Change.TRAINING})

    def loss(self, batch, output, model, state, run):
        self.seen.append(batch["image"].clone())


class Remembers(torch.nn.Module):
    """A teacher that notes what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = make("mlp"), []

    def forward(self, image):
        self.seen.append(image.clone())
        return self.inner(image)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_right_angles_turn_a_square_picture_clockwise(turns):
    picture = torch.rand(1, 2, 9, 9, generator=chance())
    found = warped(picture, one_map(turn=90.0 * turns))
    torch.testing.assert_close(found, picture.rot90(-turns, (2, 3)), atol=1e-4, rtol=0)


def test_half_a_turn_of_an_oblong_picture_keeps_its_shape():
    picture = torch.rand(1, 1, 6, 10, generator=chance())
    found = warped(picture, one_map(turn=180.0, ratio=10 / 6))
    torch.testing.assert_close(found, picture.flip(2, 3), atol=1e-4, rtol=0)


def test_a_quarter_turn_of_an_oblong_picture_keeps_right_angles():
    picture = torch.rand(1, 1, 6, 10, generator=chance())
    found = warped(picture, one_map(turn=90.0, ratio=10 / 6))
    torch.testing.assert_close(found[..., 2:8], picture[..., 2:8].rot90(-1, (2, 3)), atol=1e-4, rtol=0)


def test_whole_pixels_move_right_and_down_and_the_border_is_repeated():
    picture = torch.rand(1, 1, 8, 8, generator=chance())
    found = warped(picture, one_map(right=2 / 8, down=1 / 8))
    torch.testing.assert_close(found[..., 1:, 2:], picture[..., :-1, :-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[..., 1:, 0], picture[..., :-1, 0], atol=1e-5, rtol=0)


def test_a_picture_scaled_by_three_shows_the_pixel_in_its_middle_three_times():
    picture = torch.rand(1, 1, 9, 9, generator=chance())
    found = warped(picture, one_map(scale=3.0))
    torch.testing.assert_close(found[..., 1::3, 1::3], picture[..., 3:6, 3:6], atol=1e-5, rtol=0)


def test_a_shear_moves_each_row_by_its_distance_from_the_middle():
    picture = torch.rand(1, 1, 9, 9, generator=chance())
    found = warped(picture, one_map(shear=45.0))
    for row in range(9):
        move = row - 4
        inside = slice(max(0, -move), 9 - max(0, move))
        whence = slice(inside.start + move, inside.stop + move)
        torch.testing.assert_close(found[0, 0, row, inside], picture[0, 0, row, whence], atol=1e-4, rtol=0)


@settings(max_examples=30, deadline=None)
@given(turn=st.floats(0, 180), shift=st.floats(0, 1), scale=st.floats(0, 3))
def test_no_map_leaves_its_ranges(turn, shift, scale):
    found = maps(64, Most(turn=turn, shift=shift, scale=scale), 1.0, chance())
    sizes = found[:, :, :2].det().rsqrt()
    angles = torch.atan2(-found[:, 1, 0], found[:, 0, 0]).rad2deg()
    assert sizes.max() <= (1 + scale) * 1.001
    assert sizes.min() >= 1 / (1 + scale) * 0.999
    assert angles.abs().max() <= turn + 0.01
    assert found[:, :, 2].abs().max() <= 2 * shift + 1e-6


def test_what_reaches_no_range_leaves_pictures_as_they_are():
    picture = torch.rand(3, 1, 5, 8, generator=chance())
    torch.testing.assert_close(warped(picture, maps(3, Most(), 8 / 5, chance())), picture)


def test_the_network_and_its_teacher_see_the_same_changed_pictures():
    Eyes.seen.clear()
    teacher = as_teacher(Remembers())
    run = replace(make_run(), teacher=teacher)
    apply_techniques(make("mlp"), [Augment(shift=0.2), Distill(), Eyes(), Epochs(epochs=1)], run)
    taught = teacher.seen[-len(Eyes.seen) :]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(Eyes.seen, taught, strict=True))
    originals = {bytes(image.numpy()) for image in run.splits.train.column("image")}
    assert not any(bytes(image.numpy()) in originals for batch in Eyes.seen for image in batch)


def test_pictures_are_left_alone_after_until_and_never_the_same_before():
    Eyes.seen.clear()
    run = make_run()
    apply_techniques(make("mlp"), [Augment(turn=20, until=0.5), Eyes(), Epochs(epochs=2)], run)
    originals = {bytes(image.numpy()) for image in run.splits.train.column("image")}
    half = len(Eyes.seen) // 2
    assert not any(bytes(image.numpy()) in originals for batch in Eyes.seen[:half] for image in batch)
    assert all(bytes(image.numpy()) in originals for batch in Eyes.seen[half:] for image in batch)


def test_the_pictures_of_the_data_are_not_written_to():
    run = make_run()
    before = {name: column.clone() for name, column in run.splits.train.columns.items()}
    apply_techniques(make("mlp"), [Augment(turn=20), Epochs(epochs=1)], run)
    assert all(torch.equal(run.splits.train.column(name), column) for name, column in before.items())


def test_a_seed_gives_the_same_network_and_another_seed_another():
    first, again, other = (
        apply_techniques(make("mlp"), [Augment(turn=20), Epochs(epochs=1)], replace(make_run(), seed=seed))
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first.parameters(), other.parameters(), strict=True))


def test_a_network_that_saw_moved_digits_reads_moved_digits():
    run = make_run()
    test = run.splits.test
    moved = warped(test.column("image"), maps(len(test), Most(shift=0.15), 1.0, chance(7)))
    batch = {**test.columns, "image": moved}
    plain = apply_techniques(make("mlp"), [Epochs(epochs=25)], run)
    augmented = apply_techniques(make("mlp"), [Augment(shift=0.15), Epochs(epochs=25)], run)
    one, other = (quality(model, [batch], run.task).value for model in (plain, augmented))
    assert other > one + 0.1


def test_a_column_that_holds_no_pictures_is_named():
    run = make_run()
    flat = {
        name: Columns({**getattr(run.splits, name).columns, "flat": torch.rand(len(getattr(run.splits, name)), 4)})
        for name in ("train", "validation", "test")
    }
    with pytest.raises(DataError, match=r"'flat' has examples of shape \(4,\)"):
        apply_techniques(
            make("mlp"), [Augment(turn=5, column="flat"), Epochs(epochs=1)], replace(run, splits=Splits(**flat))
        )
    with pytest.raises(DataError, match="no column 'picture'"):
        apply_techniques(make("mlp"), [Augment(turn=5, column="picture"), Epochs(epochs=1)], run)


def test_an_augmentation_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="nothing changes a picture"):
        Augment()


def test_it_keeps_the_promises_of_a_technique():
    report = check_technique(
        Augment(**Augment.example), nets=["mlp", "conv"], others=[Epochs()], compose=False, export=False
    )
    assert not report.refused
