"""A plain convolutional network: convolution, BatchNorm, relu and pooling, stage after stage, without shortcuts.

After Simonyan and Zisserman 2015, Very Deep Convolutional Networks, sec. 2.1 (3x3 convolutions, 2x2 max pooling), with
the BatchNorm of Ioffe and Szegedy 2015 and global average pooling (Lin et al. 2014, Network in Network, sec. 3.2).
With the default widths it has 19,562 parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """A 3x3 convolution for each width, every one but the last followed by 2x2 max pooling, and a linear head.

    Args:
        widths: channels of each convolution.
        inputs: channels of the image.
        classes: outputs of the head.
    """

    def __init__(self, widths: Sequence[int] = (32, 64), inputs: int = 1, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise((inputs, *widths))):
            if index:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.Conv2d(before, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (examples, classes) for images (examples, inputs, H, W); H and W at least 2 ^ (widths - 1)."""
        return self.head(self.pool(self.features(image)).flatten(1))
