"""What every benchmark gets and gives: `Bench` in, figures out."""

from __future__ import annotations

from benchmarks.harness.bench import Bench
from benchmarks.harness.figures import Figure

__all__ = ["Bench", "Figure"]
