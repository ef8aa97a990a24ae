"""A transformer encoder that classifies texts: embeddings, positions, self-attention, the mean over the words.

Source: Vaswani et al. 2017, Attention Is All You Need, sec. 3, with learned positions and the norm before each
sublayer (Xiong et al. 2020, On Layer Normalization in the Transformer Architecture), embeddings and positions drawn
from N(0, 0.02^2) (Devlin et al. 2019, BERT, its published code). Cost per text of n words and
width d: O(n^2 d + n d^2) for each layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TextTransformer(nn.Module):
    """Classifies sequences of word numbers, where 0 is padding.

    Args:
        vocabulary: number of words, padding and the unknown word included.
        length: the longest text.
        width: of the embeddings.
        layers: of the encoder.
        heads: of each attention.
        classes: outputs of the head.
        dropout: share of activations that are dropped while training.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 10_000,
        length: int = 64,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        classes: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.position = nn.Parameter(torch.empty(length, width))
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.position, std=0.02)
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():
            self.embedding.weight[0].zero_()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (examples, classes).

        Args:
            ids: word numbers (examples, words), int64; at most `length` words.
            mask: which of them are words and not padding (examples, words), bool; at least one in each text.
        """
        x = self.dropout(self.embedding(ids) + self.position[: ids.shape[1]])
        x = self.norm(self.encoder(x, src_key_padding_mask=~mask))
        weight = mask.unsqueeze(2).to(x.dtype)
        return self.head((x * weight).sum(1) / weight.sum(1))
