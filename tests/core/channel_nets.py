"""Networks with what is hard to prune, as users write them; all take the digits."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class PaddedBlock(nn.Module):
    """He et al. 2016, option A: a shortcut that skips pixels and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.padding = (outputs - inputs) // 2

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class OptionA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(PaddedBlock(16, 16), PaddedBlock(16, 32), PaddedBlock(32, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, image):
        return self.head(self.blocks(F.relu(self.bn(self.stem(image)))).mean((2, 3)))


class Concatenated(nn.Module):
    """DenseNet's way: every layer reads all before it, a BatchNorm in front."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1)
        self.bn1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3, 1, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(20), nn.Conv2d(20, 6, 3, 1, 1)
        self.head = nn.Linear(26, 10)

    def forward(self, image):
        x = self.stem(image)
        x = torch.cat([x, self.conv1(F.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.bn2(x)))], 1)
        return self.head(x.mean((2, 3)))


class Depthwise(nn.Module):
    """MobileNet's block with a squeeze-and-excitation gate."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.bn1 = nn.Conv2d(1, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depth, self.bn2 = nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)
        self.down, self.act = nn.Conv2d(16, 12, 1), nn.PReLU(12)
        self.head = nn.Linear(12 * 16, 10)

    def forward(self, image):
        x = F.relu6(self.bn2(self.depth(F.relu6(self.bn1(self.up(image))))))
        gate = torch.sigmoid(self.excite(torch.sigmoid(self.squeeze(x.mean((2, 3))))))
        x = self.act(self.down(x * gate[:, :, None, None]))
        return self.head(F.max_pool2d(x, 2).flatten(1))


class Grouped(nn.Module):
    """ResNeXt's block: the middle convolution has four groups."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn1 = nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.two, self.bn2 = nn.Conv2d(16, 24, 3, 1, 1, groups=4), nn.BatchNorm2d(24, affine=False)
        self.three = nn.Conv2d(24, 12, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, image):
        x = torch.sigmoid(self.bn2(self.two(torch.sigmoid(self.bn1(self.one(image))))))
        return self.head(F.softplus(self.three(x)).mean((2, 3)))


class Scaled(nn.Module):
    """Bare parameters per channel, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, 2, 1)
        self.gamma = nn.Parameter(torch.full((1, 8, 1, 1), 1e-6))
        self.wide, self.norm = nn.ConvTranspose2d(8, 6, 2, 2), nn.InstanceNorm2d(6, affine=True)
        self.head = nn.Linear(6 * 64, 10)

    def forward(self, image):
        x = self.conv(image) * self.gamma
        return self.head(F.gelu(self.norm(self.wide(x))).flatten(1))


class Gated(nn.Module):
    """A gated linear unit: the halves of one convolution multiply each other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(8, 12, 3, 1, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, image):
        left, right = self.conv(image).chunk(2, 1)
        return self.head(F.relu(self.after(left * torch.sigmoid(right))).mean((2, 3)))


class Tied(nn.Module):
    """Two layers with one weight between others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.two, self.three = nn.Linear(64, 20), nn.Linear(20, 20), nn.Linear(20, 20)
        self.fourth, self.head = nn.Linear(20, 14), nn.Linear(14, 10)
        self.three.weight = self.two.weight

    def forward(self, image):
        x = F.relu(self.two(F.relu(self.first(image.flatten(1)))))
        return self.head(F.relu(self.fourth(F.relu(self.three(x)))))


class Normed(nn.Module):
    """GroupNorm behind the first convolution, none behind the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(1, 8, 3, 1, 1), nn.GroupNorm(2, 8)
        self.conv2, self.head = nn.Conv2d(8, 12, 3, 1, 1), nn.Linear(12, 10)

    def forward(self, image):
        return self.head(F.relu(self.conv2(F.relu(self.norm(self.conv1(image))))).mean((2, 3)))


class Attention(nn.Module):
    """Attention written out: channels are dealt out to heads, and their number scales the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.key = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.value, self.mix = nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 40), nn.Linear(40, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, image):
        x = self.embed(image.squeeze(1))
        query, key, value = (
            layer(x).view(len(x), 8, 2, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.mix(mixed)
        return self.head((x + self.down(F.gelu(self.up(self.norm(x))))).mean(1))


class Words(nn.Module):
    """An embedding and bare positions that a linear layer adds to, read by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(17, 12), nn.Parameter(torch.randn(64, 12))
        self.before, self.conv, self.head = nn.Linear(12, 12), nn.Conv1d(12, 16, 3), nn.Linear(16, 10)

    def forward(self, image):
        x = self.embed((image.flatten(1) * 16).long())
        x = x + self.position + self.before(torch.tanh(x))
        return self.head(F.gelu(self.conv(x.transpose(1, 2))).amax(-1))


class Viewed(nn.Module):
    """A view with the width that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.pooled, self.classes = 12, 48, 10
        self.conv, self.pool = nn.Conv2d(1, 12, 3, 1, 1), nn.AdaptiveAvgPool2d(2)
        self.hidden, self.head = nn.Linear(48, 20), nn.Linear(20, 10)

    def flat(self, x):
        return x.view(-1, self.width * 4)

    def forward(self, image):
        return self.head(F.relu(self.hidden(self.flat(self.pool(F.relu(self.conv(image)))))))


class ViewedByProduct(Viewed):
    """A view with a multiple of the channels."""

    def flat(self, x):
        return x.view(-1, self.pooled)


class ViewedByNumber(Viewed):
    """A view with a number written into the code."""

    def flat(self, x):
        return x.view(-1, 48)


class Shuffled(nn.Module):
    """ShuffleNet's exchange of channels between groups."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(16, 16, 1, groups=4)
        self.depth, self.head = nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Linear(16, 10)

    def forward(self, image):
        x = F.relu(self.two(F.relu(self.one(image))))
        x = x.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
        return self.head(F.relu(self.depth(x)).mean((2, 3)))


class Multiplied(nn.Module):
    """A depthwise convolution that gives two channels for each."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.depth = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 1, 1, groups=8)
        self.two, self.head = nn.Conv2d(16, 12, 1), nn.Linear(12, 10)

    def forward(self, image):
        return self.head(F.relu(self.two(F.relu(self.depth(F.relu(self.one(image)))))).mean((2, 3)))


class TiedWords(nn.Module):
    """A language model's way: the embedding is the last layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(17, 12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.out, self.head = nn.Linear(12, 17, bias=False), nn.Linear(17, 10)
        self.out.weight = self.embed.weight

    def forward(self, image):
        x = self.embed((image.flatten(1) * 16).long())
        return self.head(self.out(x + self.down(F.relu(self.up(x)))).mean(1))


class TwoGates(nn.Module):
    """SwiGLU: two layers whose outputs multiply each other."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(64, 32), nn.Linear(64, 32)
        self.down, self.head = nn.Linear(32, 16), nn.Linear(16, 10)

    def forward(self, image):
        x = image.flatten(1)
        return self.head(F.relu(self.down(F.silu(self.gate(x)) * self.up(x))))


class ConvLSTM(nn.Module):
    """Layers before, in and behind an LSTM of both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(8, 16, 3, 1, 1), nn.LSTM(16, 20, 2, batch_first=True, bidirectional=True)
        self.after, self.head = nn.Linear(40, 24), nn.Linear(24, 10)

    def forward(self, image):
        x = F.relu(self.conv(image.squeeze(1))).transpose(1, 2)
        return self.head(F.relu(self.after(self.lstm(x)[0][:, -1])))


class Called(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.twice = nn.Linear(64, 20), nn.Linear(20, 20)
        self.two, self.head = nn.Linear(20, 14), nn.Linear(14, 10)

    def forward(self, image):
        x = self.twice(F.relu(self.twice(F.relu(self.one(image.flatten(1))))))
        return self.head(F.relu(self.two(F.relu(x))))


class Parted(nn.Module):
    """Res2Net: half of the channels go through another layer and come back beside the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.part = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.two, self.head = nn.Conv2d(16, 12, 1), nn.Linear(12, 10)

    def forward(self, image):
        left, right = self.one(image).split(8, 1)
        x = torch.cat([left, F.relu(self.part(right))], 1)
        return self.head(F.relu(self.two(x)).mean((2, 3)))


class Softmaxed(nn.Module):
    """A softmax over channels, whose sum runs over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(64, 20), nn.Linear(20, 14), nn.Linear(14, 10)

    def forward(self, image):
        return self.head(F.relu(self.two(self.one(image.flatten(1)).softmax(-1))))


class EverySecond(nn.Module):
    """Only every second channel is read."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(64, 20), nn.Linear(10, 14), nn.Linear(14, 10)

    def forward(self, image):
        return self.head(F.relu(self.two(self.one(image.flatten(1))[:, ::2])))


class PixelShuffled(nn.Module):
    """Four channels become the pixels of one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(4, 12, 3, 1, 1), nn.Linear(12, 10)

    def forward(self, image):
        return self.head(F.relu(self.two(F.relu(F.pixel_shuffle(self.one(image), 2)))).mean((2, 3)))


class InPlace(nn.Module):
    """Additions and activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.relu = nn.Conv2d(1, 12, 3, 1, 1), nn.ReLU(inplace=True)
        self.two, self.three, self.head = nn.Conv2d(12, 14, 3, 1, 1), nn.Conv2d(14, 12, 3, 1, 1), nn.Linear(12, 10)

    def forward(self, image):
        x = self.relu(self.one(image))
        y = self.three(self.relu(self.two(x)))
        y += x
        return self.head(self.relu(y).mean((2, 3)))


def seeded(build, **fields):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = build(**fields)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
    return model.eval()


def widths(model):
    return {
        path: module.weight.shape[int(getattr(module, "transposed", False))]
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }
