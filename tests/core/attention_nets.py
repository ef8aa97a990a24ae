"""Attention written out by hand, in the ways of well-known libraries; all take the digits."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Reader(nn.Module):
    """An attention between an embedding of the rows and a head."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(8, 16), attention, nn.Linear(16, 10)

    def forward(self, image):
        x = self.embed(image.squeeze(1))
        return self.head((x + self.attention(x)).mean(1))


class Packed(nn.Module):
    """timm's: one layer for queries, keys and values, in this order."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.scale = (
            heads,
            width // heads,
            width,
            (width // heads) ** -0.5,
        )
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        count, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(count, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(count, length, self.attn_dim))


class PackedByWidth(Packed):
    """The same with the width of the input in place of the heads': it cannot have fewer heads."""

    def forward(self, x):
        count, length, width = x.shape
        q, k, v = self.qkv(x).reshape(count, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, length, width))


class PackedByHead(Packed):
    """GPT-NeoX's: queries, keys and values of the first head, then of the second."""

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2).chunk(3, -1)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Biased(Packed):
    """Swin's: a bias and a temperature for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.temperature = nn.Parameter(torch.randn(8, 8, 4)), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        weights = (scores + self.table.permute(2, 0, 1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class BertSelf(nn.Module):
    """BERT's: the layer that reads the heads stands outside."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 4, 4, 16
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def parts(self, x):
        return x.view(*x.shape[:-1], self.num_attention_heads, self.attention_head_size).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.parts(self.query(x)), self.parts(self.key(x)), self.parts(self.value(x))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
        return mixed.view(*mixed.shape[:-2], self.all_head_size)


class Bert(nn.Module):
    """BERT's attention with its output."""

    def __init__(self) -> None:
        super().__init__()
        self.self, self.output = BertSelf(), nn.Linear(16, 16)

    def forward(self, x):
        return self.output(self.self(x))


class ByWidth(nn.Module):
    """DistilBERT's: the width of a head is computed from the whole width."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.dim = 4, 16
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    @property
    def spread(self) -> float:
        """What the scores are divided by."""
        return (self.dim // self.n_heads) ** 0.5

    def forward(self, x):
        count, length, _ = x.shape
        q, k, v = (
            y.view(count, length, self.n_heads, self.dim // self.n_heads).transpose(1, 2)
            for y in (self.q(x), self.k(x), self.v(x))
        )
        weights = (q @ k.transpose(-2, -1) / self.spread).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(count, length, self.dim))


class ByWholeWidth(ByWidth):
    """Scores are divided by a number that would change with the heads: it cannot have fewer."""

    @property
    def spread(self) -> float:
        """What the scores are divided by."""
        return self.dim**0.5


class Grouped(nn.Module):
    """Llama's: two heads of queries share one of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.q, self.k, self.v, self.o = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in (self.q(x), self.k(x), self.v(x)))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
