"""How a network runs: the train and eval modes of its modules, torch's fused layers, and its threads."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from warnings import catch_warnings, simplefilter

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and back into its own mode at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def unfused() -> Iterator[None]:
    """Run torch's transformer and recurrent layers part by part; fused, they are neither counted nor traced."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with catch_warnings():
            simplefilter("ignore")  # torch tells of a flag that some processors lack whenever one is set
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch compute on so many threads, and on as many as before at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def leave_fused_paths(model: nn.Module, changed: Collection[str]) -> None:
    """Keep torch's transformer layers from computing past the modules at these paths, whose forward is another now.

    Fused, an encoder layer reads the weights of its linear layers itself, and an encoder with a padding mask hands
    its layers nested tensors, which few modules take.
    """
    for path, module in model.named_modules():
        if any(child.startswith(f"{path}." if path else "") for child in changed):
            if isinstance(module, nn.TransformerEncoderLayer):
                module.activation_relu_or_gelu = 0
            elif isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
