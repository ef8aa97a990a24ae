"""Checkpoints larger than memory, rewritten tensor by tensor: 8-bit integers and the way back."""

from __future__ import annotations

from compress_core.checkpoints.shrinking import Fate, Rewritten, restore, shrink

__all__ = ["Fate", "Rewritten", "restore", "shrink"]
