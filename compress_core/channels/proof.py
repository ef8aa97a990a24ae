"""Whether coupled groups are right: a network without channels has to compute what it computes with them at zero.

    f(x; theta with the channels at zero)  ==  f(x; theta without the channels)

Both sides are computed for generic parameters: random ones, so that agreement by accident (a branch that
begins at zero, a dead unit) has probability zero, and in float64, so that rounding plays no part. A wrong
coupling, such as a shortcut that pads channels, gives two different functions, and is found out whatever
the network's own weights are. So does normalisation across channels, whose statistics change with their number.

Two halves of the channels are tried: random ones, since neighbours can agree where others do not, and the first,
since attention that deals channels out to heads agrees when each head happens to lose the same number.

Source: none; the equality is the definition of removing a channel of zeros.
Cost: three copies of the network, most in float64, and four forward passes of two examples; twice if all groups
are right, else up to twice more per group.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from compress_core.channels.attributes import with_attributes
from compress_core.channels.coupling import Group, Keeps, LeftAlone, cut_keeps, keeps_of, zero_keeps
from compress_core.channels.cutting import CannotCut
from compress_core.errors import ModelError

if TYPE_CHECKING:
    from compress_core.run import Example, Run

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest relative difference in the L2 norm; right groups differ by 1e-16 in float64 and 1e-6 in float32."""
DOES_NOT_RUN = "the network does not run"


def proven(model: nn.Module, groups: Sequence[Group], run: Run) -> tuple[list[Group], list[LeftAlone]]:
    """The groups whose channels can be removed together, and those that cannot be.

    A group may come back with numbers of a user's modules that have to be lowered with it.
    """
    if not groups or _fault(model, groups, run) is None:
        return list(groups), []
    right, left = [], []
    for group in groups:
        found = _alone(model, group, run)
        if isinstance(found, str):
            left.append(LeftAlone(group.writers, found))
        else:
            right.append(found)
    if _fault(model, right, run) is None:
        return right, left
    together: list[Group] = []
    for group in right:
        if fault := _fault(model, [*together, group], run):
            left.append(LeftAlone(group.writers, f"together with others they cannot go: {fault}"))
        else:
            together.append(group)
    return together, left


def _alone(model: nn.Module, group: Group, run: Run) -> Group | str:
    """The group, with attributes that have to be lowered with it, or why it cannot go."""
    fault = _fault(model, [group], run)
    if fault is None:
        return group
    if fault.startswith(DOES_NOT_RUN):
        for wider in with_attributes(model, group):
            if _fault(model, [wider], run) is None:
                return wider
    return fault


def check_cut(model: nn.Module, keeps: Keeps, run: Run) -> None:
    """Raise a `ModelError` unless these channels can be removed from a network."""
    if fault := fault_of(model, keeps, run):
        places = sorted({path for path, side, _ in keeps if side == "out"})
        raise ModelError(
            f"removing channels of {', '.join(places)} would break the network: {fault}",
            mend="leave these layers out, or work on single weights",
        )


def fault_of(model: nn.Module, keeps: Keeps, run: Run) -> str | None:
    """Why these channels cannot be removed, or None."""
    dense = generic(model, keeps).eval()
    trained = deepcopy(dense).train()
    dense, arguments = exact(dense, run)
    cut = deepcopy(dense)
    zero_keeps(dense, keeps)
    try:
        cut_keeps(cut, keeps)
        fault = difference(outputs(dense, arguments, run), outputs(cut, arguments, run))
        cut_keeps(trained, keeps)
        outputs(trained, run.example, run)
    except CannotCut as error:
        return str(error)
    except Exception as error:
        return f"{DOES_NOT_RUN} without them: {str(error).partition(chr(10))[0] or type(error).__name__}"
    return fault


def exact(network: nn.Module, run: Run) -> tuple[nn.Module, Example]:
    """A network and its example in float64, or as they are if it makes float32 tensors of its own."""
    arguments = tree_map(_double, run.example)
    try:
        outputs(deepcopy(network).double(), arguments, run)
    except Exception:
        return network, run.example
    return network.double(), arguments


def difference(wide: Sequence[Tensor], narrow: Sequence[Tensor]) -> str | None:
    """How the outputs of a network differ from those of the same network without something, or None."""
    if [tensor.shape for tensor in wide] != [tensor.shape for tensor in narrow]:
        return "they are an output of the network"
    if not all(_agree(one, other) for one, other in zip(wide, narrow, strict=True)):
        return "the network computes something else without them than with zeros in their place"
    return None


def generic(model: nn.Module, keeps: Keeps) -> nn.Module:
    """A copy whose weights, biases and bare parameters are random, of the same spread."""
    copy = deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    bare = {path for path, side, _ in keeps if side == "parameter"}
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            own = name.rpartition(".")[2]
            if parameter.is_floating_point() and (own in {"weight", "bias"} or name in bare):
                parameter.copy_(_random_like(parameter, own == "bias", generator))
    return copy


@torch.no_grad()
def outputs(network: nn.Module, arguments: Example, run: Run) -> list[Tensor]:
    """Every tensor in the output for the arguments, the logits first."""
    with torch.random.fork_rng(devices=[]):
        output = network(*arguments[0], **arguments[1])
    return [run.task.logits(output), *(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))]


def _fault(model: nn.Module, groups: Sequence[Group], run: Run) -> str | None:
    """Why half of the channels of the groups cannot be removed, or None: any half, and the first half."""
    generator = torch.Generator().manual_seed(1)
    device = next(model.parameters()).device
    for ordered in (False, True):
        gone = [_half(group, None if ordered else generator).to(device) for group in groups]
        if fault := fault_of(model, keeps_of(groups, gone), run):
            return fault
    return None


def _half(group: Group, generator: torch.Generator | None) -> Tensor:
    """A mask of half of the channels in each block: chosen at random, or the first ones."""
    width = group.size // group.blocks
    mask = torch.zeros(group.blocks, width, dtype=torch.bool)
    for row in mask:
        order = torch.arange(width) if generator is None else torch.randperm(width, generator=generator)
        row[order[: width // 2]] = True
    return mask.reshape(-1)


def _random_like(parameter: Tensor, bias: bool, generator: torch.Generator) -> Tensor:
    if parameter.ndim < 2 and not bias:
        return torch.rand(parameter.shape, generator=generator) + 0.5
    usual = 0.1 if bias else (2 / max(1, parameter[:1].numel())) ** 0.5
    spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
    return torch.randn(parameter.shape, generator=generator) * (spread if spread > 0.01 * usual else usual)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _agree(one: Tensor, other: Tensor) -> bool:
    tolerance = TOLERANCE.get(one.dtype, 1e-2)
    one, other = one.cpu().double(), other.cpu().double()
    return bool((one - other).norm() <= tolerance * one.norm())
