"""What the tests share: the real digits, small networks of every kind, and a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from compress_core.data import Columns, Splits
from compress_core.parts import Task
from compress_core.run import Run


@lru_cache
def digits() -> Splits:
    """The 1,797 digits of scikit-learn: 997 to learn from, 350 to choose by, 450 to report on."""
    bunch = load_digits()
    image = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    label = torch.tensor(bunch.target, dtype=torch.int64)
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(0))
    parts = order.split([997, 350, 450])
    return Splits(*(Columns({"image": image[part], "label": label[part]}) for part in parts))


class Classification(Task):
    """The smallest task for the digits; the real one is a plugin."""

    name = "test-classification"
    proportion = True
    passing: str = "positional"

    def inputs(self, batch: dict[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (({"image": batch["image"]},), {}) if self.passing == "dictionary" else ((batch["image"],), {})

    def loss(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.logits(output), batch["label"])

    def logits(self, output: Any) -> Tensor:
        return output["logits"] if isinstance(output, dict) else output

    def target(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["label"]

    def metrics(self, logits: Tensor) -> dict[str, Any]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(num_classes=logits.shape[-1], average="micro")}


def make_run(splits: Splits | None = None, teacher: nn.Module | None = None, **fields: Any) -> Run:
    """A run on the digits."""
    from compress_core.run import as_teacher

    fields.setdefault("task", Classification())
    return Run(splits=splits or digits(), teacher=None if teacher is None else as_teacher(teacher), **fields)


class MLP(nn.Module):
    """Two hidden layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


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
        x = self.blocks(F.relu(self.bn(self.stem(image))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DictNet(nn.Module):
    """A network whose forward takes a dictionary and gives one."""

    def __init__(self, widths: tuple[int, ...] = (16, 32)) -> None:
        super().__init__()
        self.net = ConvNet(widths)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
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
        return self.head(self.encoder(self.embed(image.squeeze(1))).mean(1))


class Recurrent(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.lstm(image.squeeze(1))[0][:, -1])


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": MLP,
    "conv": ConvNet,
    "transformer": Transformer,
    "lstm": Recurrent,
}


def make(name: str, seed: int = 0) -> nn.Module:
    """One of `NETS`, seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETS[name]()
