"""Recurrent layers whose weights are kept as codes; their biases stay real."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress_codes.coded import CodedTensor
from compress_core.forwards import TensorsOfTheMoment
from compress_core.masks import MARK, hold_zeros


class CodedRecurrent(TensorsOfTheMoment):
    """What the kept recurrent layers share."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        for name in weight_names(self):
            self._parameters[name] = None
        self.coded = nn.ModuleDict()
        self.requires_grad_(False)

    def tensor(self, name: str) -> Tensor | None:
        """A weight from its codes, or a tensor that is real."""
        if "coded" in self._modules and name in self.coded:
            found: Tensor = self.coded[name]()
            return found
        return self._parameters[name]

    def coded_tensors(self) -> dict[str, CodedTensor]:
        """What it keeps as codes, by the names that the tensors have in torch's layer."""
        return {name: module for name, module in self.coded.items() if isinstance(module, CodedTensor)}

    @torch.no_grad()
    def reopened(self, shared: dict[int, nn.Parameter]) -> nn.Module:
        """The layer of torch with the numbers that the codes stand for, ready to train.

        Args:
            shared: the weights that are real again, by the `id` of their codes; layers with the same codes share one.
        """
        kind = next(entry for entry in REAL if isinstance(self, entry))
        with torch.random.fork_rng(devices=[]):
            layer = kind(**recurrent_arguments(self)).to(next(self.buffers()).device)
        for name in self._flat_weights_names:
            tensor = self.tensor(name)
            assert tensor is not None
            layer.get_parameter(name).copy_(tensor)
        for name, coded in self.coded_tensors().items():
            setattr(layer, name, shared.setdefault(id(coded.codes), layer.get_parameter(name)))
        for tensor_name in vars(self).get(MARK, ()):
            hold_zeros(layer, tensor_name)
        return layer.train(self.training)


class CodedLSTM(CodedRecurrent, nn.LSTM):
    """An LSTM with coded weights."""


class CodedGRU(CodedRecurrent, nn.GRU):
    """A GRU with coded weights."""


class CodedRNN(CodedRecurrent, nn.RNN):
    """An Elman network with coded weights."""


REAL: dict[type[nn.RNNBase], type[CodedRecurrent]] = {nn.LSTM: CodedLSTM, nn.GRU: CodedGRU, nn.RNN: CodedRNN}


def weight_names(layer: nn.RNNBase) -> list[str]:
    """The names of its weights."""
    return [name for name in layer._flat_weights_names if name.startswith("weight")]


def recurrent_arguments(layer: nn.RNNBase) -> dict[str, Any]:
    """The arguments that build a recurrent layer like this one."""
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    found = {name: getattr(layer, name) for name in names}
    if isinstance(layer, nn.LSTM):
        found["proj_size"] = layer.proj_size
    if isinstance(layer, nn.RNN):
        found["nonlinearity"] = layer.nonlinearity
    return found


@torch.no_grad()
def kept_recurrent(layer: nn.RNNBase, coded: dict[str, CodedTensor]) -> CodedRecurrent:
    """The kept layer of a recurrent layer of torch; weights that are not in `coded` stay real."""
    form = next(form for kind, form in REAL.items() if isinstance(layer, kind))
    kept = form(**recurrent_arguments(layer))
    for name in layer._flat_weights_names:
        if name in coded:
            kept.coded[name] = coded[name]
        else:
            kept._parameters[name] = nn.Parameter(layer.get_parameter(name).detach().clone(), requires_grad=False)
    for tensor in vars(layer).get(MARK, ()):
        hold_zeros(kept, tensor)
    return kept.to(layer.get_parameter("weight_hh_l0").device).train(layer.training)
