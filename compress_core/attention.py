"""Attention whose projections are layers of their own, and whose heads may be fewer than fill the width.

    head_h(Q, K, V) = softmax(Q W_h^q (K W_h^k)^T / sqrt(d)) V W_h^v
    y               = sum over h of head_h W_h^o + b

torch's `MultiheadAttention` keeps W^q, W^k and W^v in one tensor that no technique for linear layers sees, and wants
heads times d to be the width. `unpack` puts `Attention` in its place, which computes the same; `pack` goes back
where nothing stands against it.

Source: Vaswani et al. 2017, Attention Is All You Need, sec. 3.2.2.
Cost: as torch's; two copies of the weights while they move.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_core.masks import hold_zeros, masked_tensors
from compress_core.modes import leave_fused_paths


class Attention(nn.Module):
    """Multi-head attention with the arguments and results of torch's.

    Args:
        embed_dim: width of the queries and of the result.
        num_heads: how many there are.
        head_dim: width of each.
        dropout: share of the attention weights that are dropped while training.
        bias: whether the projections have biases.
        kdim: width of the keys; as the queries' unless given.
        vdim: width of the values; as the queries' unless given.
        batch_first: whether inputs are (examples, length, width) rather than (length, examples, width).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        *,
        dropout: float = 0.0,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, head_dim
        self.kdim, self.vdim = kdim or embed_dim, vdim or embed_dim
        self.dropout, self.batch_first = dropout, batch_first
        inner = num_heads * head_dim
        self.q_proj = nn.Linear(embed_dim, inner, bias)
        self.k_proj = nn.Linear(self.kdim, inner, bias)
        self.v_proj = nn.Linear(self.vdim, inner, bias)
        self.out_proj = nn.Linear(inner, embed_dim, bias)
        # torch's encoder layers ask for these before they compute past a module; they keep them from it
        self.register_parameter("in_proj_weight", None)
        self.register_parameter("in_proj_bias", None)
        self._qkv_same_embed_dim = False

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, as the layer is now."""
        return {
            "embed_dim": self.embed_dim,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "dropout": self.dropout,
            "bias": getattr(self.out_proj, "bias", None) is not None,
            "kdim": self.kdim,
            "vdim": self.vdim,
            "batch_first": self.batch_first,
        }

    def forward(  # noqa: PLR0917 - as torch's
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The result and, if `need_weights`, the attention weights; every argument as torch's `MultiheadAttention`.

        Args:
            query: (examples, targets, embed_dim), or without examples, or with the first two axes exchanged.
            key: (examples, sources, kdim), likewise.
            value: (examples, sources, vdim), likewise.
            key_padding_mask: (examples, sources), True or -inf where a source is padding.
            need_weights: whether to return the weights.
            attn_mask: (targets, sources) or (examples * heads, targets, sources), True or -inf where none may look.
            average_attn_weights: whether the weights are the mean over the heads.
            is_causal: a hint that `attn_mask` is the causal mask; it changes nothing.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint and needs attn_mask")
        single = query.ndim == 2
        if single:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        queries, keys, values = map(self._heads, (self.q_proj(query), self.k_proj(key), self.v_proj(value)))
        bias = self._bias(attn_mask, key_padding_mask, query)
        share = self.dropout if self.training else 0.0
        if need_weights:
            scores = queries @ keys.transpose(2, 3) * self.head_dim**-0.5
            weights = (scores if bias is None else scores + bias).softmax(-1)
            mixed = F.dropout(weights, share, self.training) @ values
        else:
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=share)
        result: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if single:
            return result.squeeze(0), None if shown is None else shown.squeeze(0)
        return result if self.batch_first else result.transpose(0, 1), shown

    def _heads(self, projected: Tensor) -> Tensor:
        """(examples, length, heads * d) as (examples, heads, length, d)."""
        return torch.unflatten(projected, 2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _bias(self, attn_mask: Tensor | None, padding: Tensor | None, query: Tensor) -> Tensor | None:
        """Both masks as one term of the scores, that spreads to (examples, heads, targets, sources)."""
        terms = []
        if attn_mask is not None:
            mask = torch.unflatten(attn_mask, 0, (-1, self.num_heads)) if attn_mask.ndim == 3 else attn_mask
            terms.append(_additive(mask, query))
        if padding is not None:
            terms.append(_additive(padding[:, None, None, :], query))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1] if terms else None


def _additive(mask: Tensor, query: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(mask, -torch.inf)
    return mask.to(query.dtype)


def cannot_unpack(module: nn.MultiheadAttention) -> str | None:
    """Why an attention cannot be unpacked, or None."""
    if type(module) is not nn.MultiheadAttention:
        return f"{type(module).__name__} is a user's own kind of attention"
    if module.bias_k is not None or module.add_zero_attn:
        return "it adds keys of its own"
    return None


def unpack(model: nn.Module, paths: Collection[str]) -> None:
    """Put `Attention` in the place of each `MultiheadAttention` at these paths; the network computes the same."""
    for path in paths:
        packed = model.get_submodule(path)
        assert isinstance(packed, nn.MultiheadAttention)
        _put(model, path, _unpacked(packed))
    leave_fused_paths(model, [f"{path}.q_proj" for path in paths])


def pack(model: nn.Module, paths: Collection[str]) -> None:
    """Put a `MultiheadAttention` back where the heads fill the width and the projections are plain linear layers."""
    for path in paths:
        module = model.get_submodule(path)
        if isinstance(module, Attention) and _fills(module):
            _put(model, path, _packed(module))


def _fills(module: Attention) -> bool:
    layers = (module.q_proj, module.k_proj, module.v_proj, module.out_proj)
    plain = all(type(layer) in {nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear} for layer in layers)
    return plain and module.num_heads * module.head_dim == module.embed_dim


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _unpacked(packed: nn.MultiheadAttention) -> Attention:
    first = packed.out_proj.weight
    found = Attention(
        packed.embed_dim,
        packed.num_heads,
        packed.head_dim,
        dropout=packed.dropout,
        bias=packed.in_proj_bias is not None,
        kdim=packed.kdim,
        vdim=packed.vdim,
        batch_first=packed.batch_first,
    ).to(first.device, first.dtype)
    _move(packed, found, back=False)
    return found.train(packed.training)


def _packed(module: Attention) -> nn.MultiheadAttention:
    first = module.out_proj.weight
    arguments = module.arguments()
    del arguments["head_dim"]
    found = nn.MultiheadAttention(**arguments).to(first.device, first.dtype)
    _move(found, module, back=True)
    return found.train(module.training)


@torch.no_grad()
def _move(packed: nn.MultiheadAttention, apart: Attention, *, back: bool) -> None:
    """Copy every tensor, with whether it trains and whether its zeros are held, to `apart` or `back` from it."""
    inner = ("q_proj", "k_proj", "v_proj")
    pairs: list[tuple[nn.Module, str, nn.Module, str, slice]] = []
    for index, name in enumerate(inner):
        rows = slice(index * packed.embed_dim, (index + 1) * packed.embed_dim)
        layer = apart.get_submodule(name)
        whole = packed.in_proj_weight is not None
        pairs.append(
            (packed, "in_proj_weight" if whole else f"{name}_weight", layer, "weight", rows if whole else _ALL)
        )
        pairs.append((packed, "in_proj_bias", layer, "bias", rows))
    pairs += [(packed.out_proj, name, apart.out_proj, name, _ALL) for name in ("weight", "bias")]
    for module, tensor, layer, own, rows in pairs:
        one, other = module._parameters[tensor], layer._parameters[own]
        if one is None or other is None:
            continue
        if back:
            one[rows] = other
            one.requires_grad_(other.requires_grad)
        else:
            other.copy_(one[rows])
            other.requires_grad_(one.requires_grad)
        source, goal = ((layer, own), (module, tensor)) if back else ((module, tensor), (layer, own))
        if source[1] in masked_tensors(source[0]):
            hold_zeros(*goal)


_ALL = slice(None)
