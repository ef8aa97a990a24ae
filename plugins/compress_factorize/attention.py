"""The projections of attention as linear layers like any other: factorized where that is worth it, else put back.

    q = x W_q^T + b_q ~ (x A^T) B^T + b_q,    and so for k, v and the output

torch's `MultiheadAttention` keeps W_q, W_k and W_v as one packed weight, whose three parts have spectra of their own.
Each is taken out before the layers are looked for (`compress_core.attention`); where none of the four is replaced,
the module that was there comes back as it was.

Source: Noach and Goldberg 2020, Compressing pre-trained language models by matrix decomposition, sec. 3 (every
projection on its own); Vaswani et al. 2017, Attention is all you need, sec. 3.2.2. Cost: one copy of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from compress_core.attention import cannot_unpack, unpack
from compress_core.weights import shared_parameters

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_FUSED = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}
"""What taking attention out changes in torch's layers."""


@dataclass(frozen=True)
class Opened:
    """The attention modules that were taken apart."""

    packed: dict[str, nn.MultiheadAttention] = field(default_factory=dict)
    flags: list[tuple[str, str, object]] = field(default_factory=list)
    """The path of a module, and an attribute as it was."""

    def close(self, model: nn.Module) -> None:
        """Put every module back, in a network or a copy of it, of which no projection was replaced."""
        for path, packed in self.packed.items():
            apart = model.get_submodule(path)
            if all(type(getattr(apart, name)) is nn.Linear for name in PROJECTIONS):
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, packed)
        for path, name, value in self.flags:
            setattr(model.get_submodule(path), name, value)


def open_attention(model: nn.Module) -> Opened:
    """Take apart, in place, every attention module that allows it; the network computes the same.

    The network itself stays what it is, and so do modules that share a weight or have hooks.
    """
    shared = shared_parameters(model)
    packed = {
        path: module
        for path, module in model.named_modules()
        if path
        and isinstance(module, nn.MultiheadAttention)
        and cannot_unpack(module) is None
        and not any(f"{path}.{name}" in shared for name, _ in module.named_parameters())
        and not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    }
    flags = [
        (path, name, getattr(module, name))
        for path, module in model.named_modules()
        for kind, name in _FUSED.items()
        if isinstance(module, kind)
    ]
    unpack(model, packed)
    return Opened(packed, flags)
