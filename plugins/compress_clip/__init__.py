"""Clipping: small weights go, weights are held within a range, and activations within a learned bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress_clip.clip import Clip
from compress_clip.clip_range import ClipRange
from compress_clip.pact import Pact
from compress_core import hookimpl
from compress_core.parts import Technique

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Clip", "ClipRange", "Pact"]


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Clip, ClipRange, Pact]


@hookimpl
def register_modules() -> list[type[nn.Module]]:
    """The rectifier with a learned bound."""
    from compress_clip.bounded import BoundedReLU

    return [BoundedReLU]
