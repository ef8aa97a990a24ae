"""Depth: which blocks and layers a network can do without, and their removal.

    y = x + F(x)  or  y = relu(x + F(x))        becomes        y = x  or  y = relu(x)

A block is found by what it does, not by its class: with all its parameters at zero F is zero, and its output is its
input, or the relu of it. The innermost modules of that kind count. Beside them, a layer of a sequence whose output has
the shape of its input can go: an encoder layer with the norm behind the sum, or a linear layer between others.
In place of relu(x) the input itself stays if it is never negative. A block becomes `nn.Identity`, or leaves its list
where the network asks more of the members of a list than to be called. Whichever it is, the network with random
weights has to compute what it computes when the block's output is set aside.

Source: Veit et al. 2016, Residual Networks Behave Like Ensembles of Relatively Shallow Networks, sec. 4.1 (blocks
taken out); Men et al. 2024, ShortGPT, sec. 3 (layers of transformers taken out).
Cost: a forward pass of each block at zero, and two of the network with all blocks set aside; two more for each block
if they cannot all go.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress_core.channels.coupling import LeftAlone
from compress_core.channels.proof import difference, exact, generic, outputs
from compress_core.modes import evaluating
from compress_core.weights import weights

if TYPE_CHECKING:
    from compress_core.run import Run

Fade = Callable[[Tensor, Tensor], Tensor]
"""A block's output, given what it would be without the block, and with it."""


@dataclass(frozen=True)
class Block:
    """A module that can go."""

    path: str
    relu: bool = False
    """Whether the relu of its input remains."""
    leaves: bool = False
    """Whether it leaves its list instead of giving its place to another module."""

    @property
    def parent(self) -> str:
        """The path of what it is a member of."""
        return self.path.rpartition(".")[0]

    def without(self, x: Tensor) -> Tensor:
        """What remains of it."""
        return x.relu() if self.relu else x


@dataclass
class _Call:
    """What went into a module and came out."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any
    times: int = 1

    @property
    def keeps_shape(self) -> bool:
        """Whether a tensor went in first, and one of the same shape came out."""
        first = self.arguments[0] if self.arguments else None
        return isinstance(first, Tensor) and isinstance(self.output, Tensor) and first.shape == self.output.shape


def find_blocks(model: nn.Module, run: Run, skip: Collection[str] = ()) -> tuple[list[Block], list[LeftAlone]]:
    """The blocks that can go, in the order of the network's modules, and the members of sequences that cannot.

    Args:
        model: the network; it stays as it is.
        run: gives the example.
        skip: paths of modules that stay, with all blocks that hold them.
    """
    random = generic(model, {}).eval()
    calls = _calls(random, run)
    found = _residual(random, calls)
    residual = _paths(found)
    found += [
        Block(path)
        for path, call in calls.items()
        if call.times == 1
        and call.keeps_shape
        and _in_sequence(random, path)
        and not any(_nested(path, other) for other in residual)
    ]
    inner = [block for block in found if not any(other.path.startswith(f"{block.path}.") for other in found)]
    blocks, left, candidates = [], [], []
    order = {path: index for index, path in enumerate(calls)}
    for block in sorted(inner, key=lambda block: order[block.path]):
        if kept := [path for path in skip if path == block.path or path.startswith(f"{block.path}.")]:
            left.append(LeftAlone((block.path,), f"{min(kept)} shall stay"))
        else:
            candidates.append(block)
    all_right = fault_without(random, candidates, run) is None
    for block in candidates:
        way = block if all_right else _way(random, block, run)
        if isinstance(way, str):
            left.append(LeftAlone((block.path,), way))
        else:
            blocks.append(way)
    return blocks, left + list(_others(random, calls, inner))


def drop_blocks(model: nn.Module, blocks: Sequence[Block]) -> None:
    """Take blocks out of a network, in place."""
    leaving: dict[str, set[str]] = {}
    for block in blocks:
        name = block.path.rpartition(".")[2]
        if block.leaves:
            leaving.setdefault(block.parent, set()).add(name)
        else:
            model.get_submodule(block.parent)._modules[name] = nn.ReLU() if block.relu else nn.Identity()
    for parent, names in leaving.items():
        members = model.get_submodule(parent)
        stay = [module for name, module in members.named_children() if name not in names]
        members._modules = {str(index): module for index, module in enumerate(stay)}


def fault_without(model: nn.Module, blocks: Sequence[Block], run: Run) -> str | None:
    """Why these blocks cannot go together, or None: random weights, and the outputs with the blocks set aside."""
    whole, arguments = exact(generic(model, {}).eval(), run)
    short = deepcopy(whole)
    with fading(whole, blocks, lambda without, with_: without):
        aside = outputs(whole, arguments, run)
    try:
        drop_blocks(short, blocks)
        return difference(aside, outputs(short, arguments, run))
    except Exception as error:
        return f"the network does not run without it: {str(error).partition(chr(10))[0] or type(error).__name__}"


@contextmanager
def fading(model: nn.Module, blocks: Sequence[Block], fade: Fade) -> Iterator[None]:
    """Let `fade` decide what the blocks give."""
    handles = hang(model, blocks, fade)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hang(model: nn.Module, blocks: Sequence[Block], fade: Fade) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks by which `fade` decides what the blocks give."""
    return [model.get_submodule(block.path).register_forward_hook(partial(_faded, block, fade)) for block in blocks]


def _faded(block: Block, fade: Fade, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    return fade(block.without(arguments[0]), output)


def _calls(model: nn.Module, run: Run) -> dict[str, _Call]:
    """The modules that run, in the order of the network, with their first call."""
    found: dict[str, _Call] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            if path in found:
                found[path].times += 1
            else:
                found[path] = _Call(arguments, keywords, output)

        return hook

    paths = [path for path, _ in model.named_modules() if path]
    handles = [model.get_submodule(path).register_forward_hook(note(path), with_kwargs=True) for path in paths]
    try:
        with evaluating(model), torch.no_grad():
            outputs(model, run.example, run)
    finally:
        for handle in handles:
            handle.remove()
    return {path: found[path] for path in paths if path in found}


def _residual(model: nn.Module, calls: Mapping[str, _Call]) -> list[Block]:
    """The modules that give their input, or its relu, when all their parameters are zero."""
    found = []
    for path, call in calls.items():
        module = model.get_submodule(path)
        if call.times == 1 and call.keeps_shape and weights(module) and any(True for _ in module.children()):
            x = torch.randn(call.arguments[0].shape, generator=torch.Generator().manual_seed(0))
            x = x.to(call.arguments[0])
            y = _at_zero(module, x, call)
            if y is not None and (torch.equal(y, x) or torch.equal(y, x.relu())):
                never_negative = bool((call.arguments[0] >= 0).all())
                found.append(Block(path, relu=not torch.equal(y, x) and not never_negative))
    return found


@torch.no_grad()
def _at_zero(module: nn.Module, x: Tensor, call: _Call) -> Tensor | None:
    """The output for x of a module whose parameters and running means are zero."""
    empty = deepcopy(module).eval()
    for parameter in empty.parameters():
        parameter.zero_()
    for name, buffer in empty.named_buffers():
        if name.rpartition(".")[2] == "running_mean":
            buffer.zero_()
    try:
        found = empty(x, *call.arguments[1:], **call.keywords)
    except Exception:
        return None
    return found if isinstance(found, Tensor) and found.shape == x.shape else None


def _way(random: nn.Module, block: Block, run: Run) -> Block | str:
    """The block with the way in which it goes, or why it cannot."""
    fault = fault_without(random, [block], run)
    if fault is None:
        return block
    parent = random.get_submodule(block.parent)
    leaving = replace(block, leaves=True)
    if not block.relu and isinstance(parent, nn.ModuleList) and len(parent) > 1:
        return leaving if fault_without(random, [leaving], run) is None else fault
    return fault


def _others(model: nn.Module, calls: Mapping[str, _Call], blocks: Sequence[Block]) -> Iterator[LeftAlone]:
    """The outermost members of sequences that are no blocks, hold none, and lie in none."""
    seen: list[str] = []
    for path, call in calls.items():
        if _in_sequence(model, path) and not any(_nested(path, other) for other in [*seen, *_paths(blocks)]):
            seen.append(path)
            reason = f"it runs {call.times} times" if call.times > 1 else "its output has another shape than its input"
            yield LeftAlone((path,), reason)


def _paths(blocks: Sequence[Block]) -> list[str]:
    return [block.path for block in blocks]


def _in_sequence(model: nn.Module, path: str) -> bool:
    """Whether it is a member of a sequence or a list, and has weights."""
    parent = model.get_submodule(path.rpartition(".")[0])
    return isinstance(parent, nn.Sequential | nn.ModuleList) and bool(weights(model.get_submodule(path)))


def _nested(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
