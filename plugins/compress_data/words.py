"""Texts as numbers of words: a vocabulary of the most frequent words, and fixed lengths with a mask.

A word is a run of letters, digits and underscores, or any other single sign that is no space, in lower case. Number 0
is padding, 1 every unknown word, and the rest are the words of the training texts, the most frequent first and equally
frequent ones in alphabetical order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PADDING, UNKNOWN = 0, 1
SPECIAL = ("<padding>", "<unknown>")

_WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """The words of a text."""
    return _WORD.findall(text.lower())


def vocabulary_of(texts: Iterable[str], size: int) -> list[str]:
    """The words with the numbers 0, 1, …: padding, the unknown word, and the most frequent ones; at most `size`."""
    counts = Counter(word for text in texts for word in words_of(text))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    return [*SPECIAL, *frequent[: size - len(SPECIAL)]]


def encode(texts: Sequence[str], vocabulary: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Number the words of texts.

    Returns:
        ids (texts, length), int64: the first `length` words of each text, then padding. A text without words becomes
        one unknown word.
        mask (texts, length), bool: true where a word is.
    """
    numbers = {word: number for number, word in enumerate(vocabulary) if number >= len(SPECIAL)}
    ids = torch.full((len(texts), length), PADDING, dtype=torch.int64)
    for row, text in enumerate(texts):
        found = [numbers.get(word, UNKNOWN) for word in words_of(text)[:length]] or [UNKNOWN]
        ids[row, : len(found)] = torch.tensor(found)
    return ids, ids != PADDING
