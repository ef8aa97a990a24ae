"""The residual networks for CIFAR-10, with shortcuts without parameters (option A).

    y = relu(F(x) + S(x)),   S(x) = x, or every second row and column of x with channels of zeros around it

Depth 6 n + 2: a 3x3 convolution, three stages of n blocks with 16, 32 and 64 channels, global average pooling, a
linear layer. Source: He et al. 2016, Deep Residual Learning for Image Recognition, sec. 4.2 and table 6: 0.27, 0.46,
0.66, 0.85 and 1.7 million parameters for depths 20, 32, 44, 56 and 110.

Parameters are named as in akamaster/pytorch_resnet_cifar10 (conv1, bn1, layer1.0.conv1, …, linear), so its published
weights load as they are, once a leading `module.` of its DataParallel checkpoints is taken off. They expect images in
[0, 1] from which (0.485, 0.456, 0.406) was taken and which were divided by (0.229, 0.224, 0.225).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PadShortcut(nn.Module):
    """Every `stride`-th row and column, with channels of zeros on both sides.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of rows and columns.
        before: how many of the first channels that go out are zero; half of those that are, rounded down, unless given.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 2, before: int | None = None) -> None:
        super().__init__()
        self.inputs = inputs
        self.outputs = outputs
        self.stride = stride
        self.before = (outputs - inputs) // 2 if before is None else before
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(examples, inputs, H, W) -> (examples, outputs, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def channel_map(self) -> tuple[int, tuple[int, ...]]:
        """How many channels come in, and for each that goes out the one that it comes from, or -1."""
        return self.inputs, (*[-1] * self.before, *range(self.inputs), *[-1] * self.after)

    def narrow_in(self, kept: Tensor) -> None:
        """Let only the channels in `kept` (their numbers) come in."""
        self.inputs = len(kept)

    def narrow_out(self, kept: Tensor) -> None:
        """Let only the channels in `kept` (their numbers) go out."""
        before, after = int((kept < self.before).sum()), int((kept >= self.outputs - self.after).sum())
        self.before, self.after, self.outputs = before, after, len(kept)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.inputs}, {self.outputs}, stride={self.stride}, before={self.before}"


class BasicBlock(nn.Module):
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
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else PadShortcut(inputs, outputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(examples, inputs, H, W) -> (examples, outputs, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of residual blocks.

    Args:
        blocks: in each stage, n in depth = 6 n + 2.
        classes: outputs of the last layer.
        inputs: channels of the image.
    """

    def __init__(self, blocks: int, classes: int = 10, inputs: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (examples, classes) for images (examples, inputs, H, W)."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (BasicBlock(outputs, outputs) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)


def ResNet20(classes: int = 10, inputs: int = 3) -> CifarResNet:
    """Depth 20, 269,722 parameters."""
    return CifarResNet(3, classes, inputs)


def ResNet32(classes: int = 10, inputs: int = 3) -> CifarResNet:
    """Depth 32, 464,154 parameters."""
    return CifarResNet(5, classes, inputs)


def ResNet44(classes: int = 10, inputs: int = 3) -> CifarResNet:
    """Depth 44, 658,586 parameters."""
    return CifarResNet(7, classes, inputs)


def ResNet56(classes: int = 10, inputs: int = 3) -> CifarResNet:
    """Depth 56, 853,018 parameters."""
    return CifarResNet(9, classes, inputs)


def ResNet110(classes: int = 10, inputs: int = 3) -> CifarResNet:
    """Depth 110, 1,727,962 parameters."""
    return CifarResNet(18, classes, inputs)
