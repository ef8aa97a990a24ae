"""The two directions of a range coder, and what a direction would cost, behind one interface.

    bits(symbol) = -log2(weight[symbol] / sum(weight))

A model is a table of integers, from which constriction derives the same 24-bit frequencies on every machine. What
codes a tensor is written once, for both directions: it hands the values to a `Writer` or a `Price`, and gets them from
a `Reader`. Numbers that look random, such as the low bits of a mantissa, pass it by as raw bytes.

Source: constriction (Bamler 2022, "Understanding entropy coding with asymmetric numeral systems"), its range coder.
Cost: 20 to 50 ns a symbol.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Words = NDArray[Any]
"""Unsigned integers of any width."""

Memory = dict[str, tuple[Ints, int]]
"""How often each symbol came in the last sequence of each kind, and the symbol in its middle."""

ONE = 1 << 16
"""A probability of one."""
LARGEST_NUMBER = 1 << 16

_model = constriction.stream.model
_queue = constriction.stream.queue


class DamagedError(ValueError):
    """A packed file that is cut off, altered, or was made to do harm."""


class Coder(ABC):
    """One pass over a file. `values` is what is written; a reader takes None and gives what it finds."""

    def __init__(self) -> None:
        self.memory: Memory = {}

    def remember(self, kind: str, weights: Ints, middle: int) -> None:
        """Keep what a sequence has taught."""
        self.memory[kind] = weights, middle

    @abstractmethod
    def bits(self, ones: Ints, values: Words | None) -> Words:
        """Independent bits, the probability of a one being `ones / 65536`."""

    @abstractmethod
    def symbols(self, weights: Ints, count: int, values: Words | None) -> Words:
        """Symbols that are distributed as the positive integers `weights`."""

    @abstractmethod
    def mixed(self, weights: Ints, values: Words | None) -> Words:
        """Symbols each of which has its own distribution, (symbols, alphabet)."""

    @abstractmethod
    def number(self, limit: int, value: int | None) -> int:
        """A number from `range(limit)`, each as likely; `limit` is at most 65536."""

    @abstractmethod
    def raw(self, size: int, values: bytes | None) -> bytes:
        """Bytes as they are."""


class Writer(Coder):
    """Makes the two parts of a file's body."""

    def __init__(self) -> None:
        super().__init__()
        self._encoder = _queue.RangeEncoder()
        self._raw = bytearray()

    def bits(self, ones: Ints, values: Words | None) -> Words:
        """Write them."""
        assert values is not None
        self._encoder.encode(values.astype(np.int32), _model.Bernoulli(perfect=False), ones / ONE)
        return values

    def symbols(self, weights: Ints, count: int, values: Words | None) -> Words:
        """Write them."""
        assert values is not None
        if len(weights) > 1 and count:
            self._encoder.encode(values.astype(np.int32), _categorical(weights))
        return values

    def mixed(self, weights: Ints, values: Words | None) -> Words:
        """Write them."""
        assert values is not None
        if weights.shape[1] > 1 and len(values):
            self._encoder.encode(values.astype(np.int32), _model.Categorical(perfect=False), weights.astype(np.float64))
        return values

    def number(self, limit: int, value: int | None) -> int:
        """Write it."""
        assert value is not None
        assert 0 <= value < limit <= LARGEST_NUMBER
        if limit > 1:
            self._encoder.encode(value, _model.Uniform(limit))
        return value

    def raw(self, size: int, values: bytes | None) -> bytes:
        """Write them."""
        assert values is not None
        assert len(values) == size
        self._raw += values
        return values

    def parts(self) -> tuple[bytes, bytes]:
        """The raw bytes and the coded ones."""
        return bytes(self._raw), self._encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class Price(Coder):
    """Adds up what a writer would write."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = dict(memory)
        self.total = 0.0
        """In bits."""

    def bits(self, ones: Ints, values: Words | None) -> Words:
        """Add the cost of them."""
        assert values is not None
        self.total -= float(np.log2(np.where(values, ones, ONE - ones) / ONE).sum())
        return values

    def symbols(self, weights: Ints, count: int, values: Words | None) -> Words:
        """Add the cost of them."""
        assert values is not None
        if count:
            self.total += count * float(np.log2(weights.sum())) - float(np.log2(weights)[values].sum())
        return values

    def mixed(self, weights: Ints, values: Words | None) -> Words:
        """Add the cost of them."""
        assert values is not None
        chosen = weights[np.arange(len(values)), values]
        self.total += float(np.log2(weights.sum(1)).sum() - np.log2(chosen).sum())
        return values

    def number(self, limit: int, value: int | None) -> int:
        """Add the cost of it."""
        assert value is not None
        self.total += float(np.log2(limit))
        return value

    def raw(self, size: int, values: bytes | None) -> bytes:
        """Add the cost of them."""
        assert values is not None
        self.total += 8 * size
        return values


class Reader(Coder):
    """Finds in the two parts of a body what a writer has put there.

    Raises:
        DamagedError: from every method, if there is no more.
    """

    def __init__(self, raw: memoryview, coded: memoryview) -> None:
        super().__init__()
        self._raw = raw
        self._at = 0
        words = np.frombuffer(bytes(coded) + b"\0" * (-len(coded) % 4), "<u4").astype(np.uint32)
        self._decoder = _queue.RangeDecoder(words)

    def bits(self, ones: Ints, values: Words | None) -> Words:
        """Read them."""
        return self._decode(_model.Bernoulli(perfect=False), ones / ONE)

    def symbols(self, weights: Ints, count: int, values: Words | None) -> Words:
        """Read them."""
        if len(weights) == 1 or not count:
            return np.zeros(count, np.int32)
        return self._decode(_categorical(weights), count)

    def mixed(self, weights: Ints, values: Words | None) -> Words:
        """Read them."""
        if weights.shape[1] == 1 or not len(weights):
            return np.zeros(len(weights), np.int32)
        return self._decode(_model.Categorical(perfect=False), weights.astype(np.float64))

    def number(self, limit: int, value: int | None) -> int:
        """Read it."""
        return int(self._decode(_model.Uniform(limit), 1)[0]) if limit > 1 else 0

    def raw(self, size: int, values: bytes | None) -> bytes:
        """Read them."""
        if self._at + size > len(self._raw):
            raise DamagedError("it ends too early")
        self._at += size
        return bytes(self._raw[self._at - size : self._at])

    def _decode(self, model: Any, what: Any) -> Words:
        try:
            found: Words = self._decoder.decode(model, what)
        except AssertionError as error:
            raise DamagedError("its codes fit no model") from error
        return found


def _categorical(weights: Ints) -> Any:
    return _model.Categorical(weights.astype(np.float64), perfect=False)
