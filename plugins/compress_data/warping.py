"""Random affine maps of pictures, one for each: turned, moved, scaled and sheared a little, the label stays.

    out(p) = in(A p - 2 t)        A = R(-a) S(h) / z,  p in [-1, 1]^2 from corner to corner

R(a) turns by the angle a, S(h) = [[1, tan h], [0, 1]] shears, z scales, and t moves, as a share of the picture. Between
pixels `in` is interpolated bilinearly, and beyond the border it is as at the border. a, h, log z and t are uniform in
[-m, m], m being the largest of each.

Source: Simard, Steinkraus & Platt 2003, "Best practices for convolutional neural networks applied to visual document
analysis", sec. 2; Jaderberg et al. 2015, "Spatial transformer networks", eq. 1 and 3 to 5, for the maps and their grid.
Ranges: angles in degrees, below 90 for the shear; pictures (examples, channels, height, width) of any size.
Cost: 10 to 20 ns a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Most:
    """How far pictures are turned, moved, scaled and sheared at most."""

    turn: float = 0.0
    """In degrees."""
    shift: float = 0.0
    """As a share of the height and of the width."""
    scale: float = 0.0
    """A picture becomes at most 1 + scale times as large, and at least 1 / (1 + scale) times."""
    shear: float = 0.0
    """In degrees."""


class Chance(nn.Module):
    """A source of chance of one training."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)


def maps(count: int, most: Most, ratio: float, generator: torch.Generator) -> Tensor:
    """Affine maps (count, 2, 3) from the places of the result to those of the picture, drawn at random.

    Args:
        count: how many.
        most: their ranges.
        ratio: the width of the pictures divided by their height.
        generator: the source of chance, on the CPU.
    """
    turn, shear, size, right, down = (2 * torch.rand(5, count, generator=generator) - 1).unbind()
    shift = most.shift * torch.stack([right, down], 1)
    return affine_maps(turn * most.turn, shift, torch.exp(size * log(1 + most.scale)), shear * most.shear, ratio)


def affine_maps(turn: Tensor, shift: Tensor, scale: Tensor, shear: Tensor, ratio: float) -> Tensor:
    """The maps that turn pictures clockwise, move, enlarge and shear them, (examples, 2, 3).

    Args:
        turn: angles in degrees, (examples,).
        shift: to the right and down, as a share of the width and of the height, (examples, 2).
        scale: how many times as large they become, (examples,).
        shear: angles in degrees, (examples,).
        ratio: the width of the pictures divided by their height; right angles stay right angles.
    """
    tilt = torch.tan(torch.deg2rad(shear))
    cos, sin = torch.deg2rad(turn).cos(), torch.deg2rad(turn).sin()
    moved = -2 * shift
    rows = [
        [cos / scale, (tilt * cos + sin) / scale / ratio, moved[:, 0]],
        [-sin / scale * ratio, (cos - tilt * sin) / scale, moved[:, 1]],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def warped(pictures: Tensor, affine: Tensor) -> Tensor:
    """Pictures (examples, channels, height, width) seen through one map (2, 3) each."""
    grid = F.affine_grid(affine.to(pictures), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)
