"""What the tests share: the digits, the networks and the run of the conformance kit."""

from __future__ import annotations

from compress_core.testing.digits import Classification, digits, make_run
from compress_core.testing.nets import MLP, NETS, Block, ConvNet, DictNet, Recurrent, Transformer
from compress_core.testing.nets import make_net as make

__all__ = [
    "MLP",
    "NETS",
    "Block",
    "Classification",
    "ConvNet",
    "DictNet",
    "Recurrent",
    "Transformer",
    "digits",
    "make",
    "make_run",
]
