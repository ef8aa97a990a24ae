"""Small networks of every common kind: what the kit runs a technique on.

Each takes the digits of `compress_core.testing.digits`: images of shape (examples, 1, 8, 8), ten classes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from compress_core.factory import build_model


class MLP(nn.Module):
    """Two hidden layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def forward(self, image: Tensor) -> Tensor:
        """The logits, (examples, 10)."""
        logits: Tensor = self.layers(image)
        return logits


class Block(nn.Module):
    """Two convolutions beside an identity or a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both paths, (examples, outputs, height / stride, width / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.skip(x))


class ConvNet(nn.Module):
    """A small residual network with BatchNorm."""

    def __init__(self, widths: tuple[int, ...] = (16, 32)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        pairs = zip((widths[0], *widths), widths, strict=False)
        self.blocks = nn.Sequential(*(Block(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(pairs)))
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, image: Tensor) -> Tensor:
        """The logits, (examples, 10)."""
        x = self.blocks(F.relu(self.bn(self.stem(image))))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class DictNet(nn.Module):
    """A network whose forward takes a dictionary and gives one."""

    def __init__(self, widths: tuple[int, ...] = (16, 32)) -> None:
        super().__init__()
        self.net = ConvNet(widths)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{"logits": (examples, 10)}` for `{"image": (examples, 1, 8, 8)}`."""
        return {"logits": self.net(inputs["image"])}


class Transformer(nn.Module):
    """torch's own encoder over the rows of an image."""

    def __init__(self, width: int = 16, layers: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """The logits, (examples, 10)."""
        logits: Tensor = self.head(self.encoder(self.embed(image.squeeze(1))).mean(1))
        return logits


class Recurrent(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """The logits, (examples, 10)."""
        logits: Tensor = self.head(self.lstm(image.squeeze(1))[0][:, -1])
        return logits


NETS: Mapping[str, type[nn.Module]] = {
    "mlp": MLP,
    "conv": ConvNet,
    "transformer": Transformer,
    "lstm": Recurrent,
}
"""The networks on which the kit runs a technique, by the names that `nets=` takes."""


def make_net(name: str, seed: int = 0) -> nn.Module:
    """One of `NETS` with seeded weights, built as a recipe builds it; nobody's random numbers are disturbed."""
    return build_model(f"{__name__}:{NETS[name].__qualname__}", {}, seed=seed)


def factory_of(model: nn.Module) -> str:
    """The import string that builds a network of this type, as `compress_core.artifact.save` wants it."""
    return f"{type(model).__module__}:{type(model).__qualname__}"
