"""A residual network for small images: y = relu(F(x) + S(x)), S the identity or a projection by a 1x1 convolution.

Source: He et al. 2016, Deep Residual Learning for Image Recognition, eqs. 1 and 2 and sec. 4.1 (option B). With
the default widths it has 306,122 parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(examples, inputs, H, W) -> (examples, outputs, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.shortcut(x))


class ConvNet(nn.Module):
    """A stem, a stage of residual blocks for each width, and a linear head over the pooled channels.

    Every stage but the first halves the height and the width.

    Args:
        widths: channels of each stage.
        blocks: residual blocks in each stage.
        inputs: channels of the image.
        classes: outputs of the head.
    """

    def __init__(self, widths: Sequence[int] = (64, 128), blocks: int = 1, inputs: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages = [
            nn.Sequential(
                ResidualBlock(before, after, 1 if index == 0 else 2),
                *(ResidualBlock(after, after) for _ in range(blocks - 1)),
            )
            for index, (before, after) in enumerate(pairwise((widths[0], *widths)))
        ]
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (examples, classes) for images (examples, inputs, H, W)."""
        return self.head(self.pool(self.stages(self.stem(image))).flatten(1))
