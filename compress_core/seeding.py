"""One seed for torch, NumPy's global generator and Python's `random`: a user's own code may draw from any of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


def seed_all(seed: int) -> None:
    """Seed the three; a generator that code makes without a seed, `numpy.random.default_rng()`, is out of reach."""
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed all three within the block; afterwards each goes on where the caller's own numbers were."""
    numbers, python = numpy.random.get_state(), random.getstate()
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = list(range(torch.cuda.device_count())) if in_use else []
    with torch.random.fork_rng(devices=devices):
        seed_all(seed)
        try:
            yield
        finally:
            numpy.random.set_state(numbers)
            random.setstate(python)
