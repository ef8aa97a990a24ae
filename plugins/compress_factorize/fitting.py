"""Each decomposed piece is fitted on its own to what the layer that it replaces gave in the original network.

    min over A, b of  sum || y - A h' - b ||^2 + lambda || A - A_0 ||^2

    y   the output of the original layer in the original network
    h'  what reaches the last layer of the chain in the network as it is compressed so far (patches, if it is a
        convolution)
    A_0 the weight from the decomposition; lambda = `RIDGE` times the mean of the diagonal of sum h' h'^T

in closed form,  A = A_0 + (B - A_0 G) (G + lambda)^-1  with G = sum h' h'^T, B = sum y h'^T  (b is a column of A whose
h' is 1). Directions that the calibration never shows keep the decomposition's weight. Layers are visited in the order
in which they run: each sees the errors of those before it and makes up for them.

`steps` goes on with Adam on the same loss without ridge, for all layers of the chain, from that solution.

A quarter of the calibration batches is held out of the fit; a fit that does worse on it than what was there is undone.

Layers are fitted one after the other and not in parallel, since h' depends on those before. With h' from the original
network they would be independent, and worse: of 1,500 held-out CIFAR-10 images, ResNet-20 with spatial chains for 50 %
and 35 % of its multiplications then gets 80.2 % and 65.9 % right, where this order gets 82.7 % and 76.1 %. Pieces that
are independent by nature are whole blocks (`substitution.py`): there one pass teaches all of them at once.

Source: Zhang et al. 2015, Accelerating very deep convolutional networks for classification and detection, sec. 3.3
(asymmetric reconstruction, there with the nonlinearity and for all of the factors); He, Zhang, Sun 2017, Channel
pruning for accelerating very deep neural networks, sec. 3.1.1 (the same least squares). Cost: for each layer two
passes over the calibration batches, as far as that layer, and O(p^3) for p entries of h'; with `steps`, as many passes
through one chain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import cos, pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress_core.data import Batch
from compress_core.modes import evaluating, unfused
from compress_core.run import Run
from compress_factorize.inputs import Patches
from compress_factorize.pieces import weight_of

RIDGE = 1e-4
HELD_OUT = 4
"""One batch of so many is held out."""
POSITIONS = 4096
"""Of each batch at most so many output positions are taken, drawn by the seed."""
NUMBERS = 2**26
"""Of inputs and outputs together; `steps` keeps no more of them in memory."""
RATE = 0.01
"""Adam's first step, as a share of the root mean square of each weight."""


@dataclass(frozen=True)
class Fit:
    """The relative error of a layer's outputs on the held-out batches, sqrt(sum |y - y'|^2 / sum |y|^2)."""

    before: float
    after: float


@dataclass(frozen=True)
class Moments:
    """Sums over positions: all that the loss of a linear map depends on."""

    features: Tensor
    """G = sum h h^T, (p, p)."""
    products: Tensor
    """B = sum y h^T, (out, p)."""
    square: Tensor
    """sum |y|^2, a scalar."""

    @classmethod
    def of(cls, features: Tensor, targets: Tensor) -> Moments:
        """Of some positions, (n, p) and (n, out)."""
        h, y = features.detach().float(), targets.detach().float()
        return cls((h.T @ h).cpu().double(), (y.T @ h).cpu().double(), y.square().sum().cpu().double())

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.features + other.features, self.products + other.products, self.square + other.square)

    def loss(self, weight: Tensor) -> Tensor:
        """The sum of |y - A h|^2, a scalar."""
        return (self.square + ((weight @ self.features - 2 * self.products) * weight).sum()).clamp(min=0)

    def error(self, weight: Tensor) -> float:
        """The relative error, sqrt(sum |y - A h|^2 / sum |y|^2)."""
        return sqrt(float(self.loss(weight) / self.square)) if self.square > 0 else 0.0

    def best(self, start: Tensor, ridge: float = RIDGE) -> Tensor:
        """The weight (out, p) of the least loss, drawn to `start`."""
        shift = ridge * self.features.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        system = self.features + shift * torch.eye(len(self.features), dtype=torch.float64)
        found: Tensor = torch.linalg.solve(system, (self.products - start @ self.features).T).T
        return start + found


Pair = tuple[Tensor, Tensor]
"""What goes into a chain, and what should come out."""


def fit_pieces(
    original: nn.Module, model: nn.Module, pieces: Mapping[str, nn.Module], run: Run, *, steps: int = 0
) -> dict[str, Fit]:
    """Fit the chains in a network, in place, and tell the error of each.

    Args:
        original: the network before anything was replaced.
        model: the network with the chains.
        pieces: the chains by path, as they are in `model`.
        run: gives the calibration batches and the seed.
        steps: of Adam for each chain, after the closed form.
    """
    if not pieces:
        return {}
    fit, held = split(list(run.calibration()))
    found: dict[str, Fit] = {}
    with evaluating(original), evaluating(model), unfused():
        for path, calls in in_order(model, pieces, run).items():
            layer, chain = original.get_submodule(path), pieces[path]
            assert isinstance(chain, nn.Sequential)

            def pairs(
                some: list[Batch], layer: nn.Module = layer, chain: nn.Sequential = chain, calls: int = calls
            ) -> Iterator[Pair]:
                for batch in some:
                    with torch.no_grad():
                        inputs = seen(model, chain, run, batch, calls)[0]
                        outputs = seen(original, layer, run, batch, calls)[1]
                    yield from zip(inputs, outputs, strict=True)

            found[path] = fit_last(chain, pairs(fit), pairs(held), run.seed)
            if steps:
                found[path] = fit_all(chain, kept(pairs(fit)), kept(pairs(held)), steps, found[path])
    return found


def split(batches: list[Batch]) -> tuple[list[Batch], list[Batch]]:
    """The batches to fit on, and those held out; where there is one batch only, it is some of its examples.

    A single example is both.
    """
    if len(batches) > 1:
        most = len(batches) - max(1, len(batches) // HELD_OUT)
        return batches[:most], batches[most:]
    (batch,) = batches
    count = len(next(iter(batch.values())))
    if count == 1:
        return batches, batches
    most = count - max(1, count // HELD_OUT)
    parts = slice(most), slice(most, None)
    first, last = ({name: column[part] for name, column in batch.items()} for part in parts)
    return [first], [last]


@torch.no_grad()
def fit_last(chain: nn.Sequential, fit: Iterator[Pair], held: Iterator[Pair], seed: int = 0) -> Fit:
    """Fit the last layer of a chain in closed form, in place, unless that does worse on the pairs held out."""
    generator = torch.Generator().manual_seed(seed)
    start = matrix_of(chain[-1])
    best = moments_of(chain, fit, generator).best(start)
    judged = moments_of(chain, held, generator)
    found = Fit(judged.error(start), judged.error(best))
    if not found.after < found.before:
        return Fit(found.before, found.before)
    put_matrix(chain[-1], best)
    return found


def fit_all(chain: nn.Sequential, fit: list[Pair], held: list[Pair], steps: int, found: Fit) -> Fit:
    """Fit every layer of a chain by Adam, in place, unless that does worse on the pairs held out."""
    before = error_of_outputs(chain, held)
    pupil = deepcopy(chain).requires_grad_(True)
    if isinstance(pupil[0], nn.Embedding):
        pupil[0].sparse = False  # Adam takes no sparse gradients
    groups = [
        {"params": [parameter], "lr": RATE * float(parameter.detach().square().mean().sqrt().clamp(min=1e-8))}
        for parameter in pupil.parameters()
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + cos(pi * step / steps)) / 2)
    scale = sum(float(y.square().mean()) for _, y in fit) / len(fit)
    for step in range(steps):
        x, y = fit[step % len(fit)]
        optimizer.zero_grad()
        (F.mse_loss(pupil(x), y) / max(scale, 1e-30)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    after = error_of_outputs(pupil, held)
    if not after < before:
        return found
    chain.load_state_dict(pupil.state_dict())
    return Fit(found.before, after)


def moments_of(chain: nn.Sequential, pairs: Iterator[Pair], generator: torch.Generator) -> Moments:
    """The moments of what reaches the last layer of a chain, at drawn positions of every pair."""
    total: Moments | None = None
    for x, y in pairs:
        every, targets = Patches(chain[-1], chain[:-1](x)), rows_of(chain[-1], y)
        chosen = None
        if len(targets) > POSITIONS:
            chosen = torch.randperm(len(targets), generator=generator)[:POSITIONS].to(targets.device)
            targets = targets[chosen]
        features = every.take(chosen)
        if getattr(chain[-1], "bias", None) is not None:
            features = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
        one = Moments.of(features, targets)
        total = one if total is None else total + one
    assert total is not None
    return total


def rows_of(layer: nn.Module, y: Tensor) -> Tensor:
    """The outputs of a layer by position, (positions, out), in the order of `Patches`."""
    if not isinstance(layer, nn.Conv2d):
        return y.reshape(-1, y.shape[-1])
    return (y[None] if y.ndim == 3 else y).movedim(1, 3).flatten(0, 2)


def matrix_of(layer: nn.Module) -> Tensor:
    """The weight of a layer (out, p) with its bias, if it has one, as the last column; on the processor, in float64."""
    found = weight_of(layer).flatten(1)
    bias = getattr(layer, "bias", None)
    return found if bias is None else torch.cat([found, bias.detach().cpu().double()[:, None]], dim=1)


def put_matrix(layer: nn.Module, matrix: Tensor) -> None:
    """Give a layer the weight, and the bias, of `matrix_of`."""
    bias = getattr(layer, "bias", None)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if bias is not None:
        bias.copy_(matrix[:, -1])
        matrix = matrix[:, :-1]
    weight.copy_(matrix.reshape(weight.shape))


@torch.no_grad()
def error_of_outputs(chain: nn.Module, pairs: list[Pair]) -> float:
    """The relative error, sqrt(sum |y - y'|^2 / sum |y|^2)."""
    lost = sum(float((y - chain(x)).square().sum()) for x, y in pairs)
    whole = sum(float(y.square().sum()) for _, y in pairs)
    return sqrt(lost / whole) if whole else 0.0


def kept(pairs: Iterator[Pair]) -> list[Pair]:
    """The pairs in memory, no more than `NUMBERS` numbers of them, but at least one."""
    found: list[Pair] = []
    left = NUMBERS
    for x, y in pairs:
        left -= x.numel() + y.numel()
        if found and left < 0:
            break
        found.append((x, y))
    return found


class _EnoughError(BaseException):
    """Nothing behind this is wanted: no error, and nothing that a network's own `except Exception` catches."""


def seen(
    model: nn.Module, module: nn.Module, run: Run, batch: Batch, calls: int | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """What goes into and comes out of a module at every call for one batch; the network stops after so many calls."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(arguments[0].detach().clone())
        outputs.append(output.detach().clone())
        if len(outputs) == calls:
            raise _EnoughError

    handle = module.register_forward_hook(note)
    try:
        run.forward(model, batch)
    except _EnoughError:
        pass
    finally:
        handle.remove()
    return inputs, outputs


@torch.no_grad()
def in_order(model: nn.Module, pieces: Mapping[str, nn.Module], run: Run) -> dict[str, int]:
    """How often each module is called, by its path, in the order in which they are first called."""
    called: dict[str, int] = {}

    def note(module: nn.Module, inputs: object, path: str) -> None:
        called[path] = called.get(path, 0) + 1

    handles = [module.register_forward_pre_hook(partial(note, path=path)) for path, module in pieces.items()]
    try:
        run.forward(model, next(iter(run.calibration(size=2, limit=1))))
    finally:
        for handle in handles:
            handle.remove()
    return called
