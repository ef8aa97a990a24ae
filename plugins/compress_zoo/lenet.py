"""The two LeNets that the literature on pruning reports on.

LeNet-300-100: 784 -> 300 -> 100 -> 10 fully connected, 266,610 parameters (LeCun et al. 1998, Gradient-Based Learning
Applied to Document Recognition, sec. III-C), with relu as in Han et al. 2015, Learning both Weights and Connections.
LeNet-5: Caffe's variant, the one of Han et al. and their successors, 431,080 parameters: 20 and 50 channels of 5x5
convolutions, each followed by 2x2 max pooling and no relu, then 800 -> 500 -> relu -> 10 (BVLC/caffe,
examples/mnist/lenet.prototxt).
"""

from __future__ import annotations

from torch import Tensor, nn

from compress_zoo.mlp import MLP


class LeNet300100(MLP):
    """Fully connected, 784-300-100-10, for images of 28x28.

    Args:
        classes: outputs of the last layer.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__(784, (300, 100), classes)


class LeNet5(nn.Module):
    """Caffe's LeNet-5 for images of 28x28.

    Args:
        inputs: channels of the image.
        classes: outputs of the last layer.
    """

    def __init__(self, inputs: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 20, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(800, 500)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(500, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (examples, classes) for images (examples, inputs, 28, 28)."""
        x = self.pool2(self.conv2(self.pool1(self.conv1(image))))
        return self.fc2(self.relu(self.fc1(x.flatten(1))))
