"""Factorization: a layer whose weight is nearly of low rank becomes a chain of smaller layers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_core import hookimpl
from compress_core.catalog import catalog
from compress_core.errors import ModelError
from compress_core.parts import Change, Part, Technique
from compress_factorize.substitute import Substitute

if TYPE_CHECKING:
    from torch import nn

    from compress_core.run import Run
    from compress_core.stopwatch import Stopwatch
    from compress_factorize.attention import Opened
    from compress_factorize.layers import Found
    from compress_factorize.pieces import Factors
    from compress_factorize.ranks import Option, Ranks


TORCH = "torch"
"""The runtime that needs no export."""
NO_RANK = ("cp", "separable", "group")
"""Methods for which a rank alone says too little."""


class Factorize(Technique):
    """Replace layers by chains of smaller ones: W ~ (U sqrt(S)) (sqrt(S) V^T).

    A layer is replaced only where the chain needs fewer parameters and fewer multiplications; the others stay
    and are named, and the relative error of every replaced layer is told. Train afterwards, or distil: the
    factors start near the layer and learn what the truncation lost.
    """

    name = "factorize"
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.6}

    energy: float | None = Field(default=None, gt=0, le=1)
    """The share of each layer's squared norm that must stay; its relative error is at most sqrt(1 - energy)."""
    ratio: float | None = Field(default=None, gt=0, lt=1)
    """The share of what `of` counts that may stay, over all these layers, spent where it keeps the most."""
    rank: Annotated[int, Field(ge=1)] | Literal["evbmf"] | None = None
    """The rank of every layer, or `evbmf`: what stands out of the noise in each weight. Give one of `energy`, `ratio`
    and `rank`."""
    of: Literal["parameters", "macs", "latency"] = "parameters"
    """What is saved: parameters, multiplications, or with `ratio` the measured time of a call of the network."""
    fit: Literal["data", "weight"] = "data"
    """Whether the pieces keep what the layer answers to calibration examples (linear layers, and convolutions split by
    `spatial`, `tucker` and `channel`; no labels), or its weight."""
    method: Literal["spatial", "tucker", "channel", "input", "cp", "separable", "group"] = "spatial"
    """How a convolution is split: into k x 1 and 1 x k; into 1x1, k x k and 1x1; into k x k and 1x1; into 1x1 and
    k x k; into 1x1, k x 1 and 1 x k for each channel by itself, and 1x1; into k x k for each channel by itself and 1x1;
    into k x k in groups and 1x1."""
    multiple: int = Field(default=1, ge=1)
    """Ranks are multiples of this; integer kernels like 16."""
    refine: Literal["none", "least-squares", "steps"] = "none"
    """Whether every replaced layer is then fitted on its own to what the layer gave, on calibration batches: not; its
    last piece, in closed form; after that all of its pieces, by `refine_steps`."""
    refine_steps: int = Field(default=100, ge=1)
    """Steps of Adam for each replaced layer, with `refine: steps`."""
    runtime: str = "torch"
    """Where `of: latency` is measured: in torch, or in an exporter's runtime, as in `onnx`."""
    batch: int = Field(default=1, ge=1)
    """Examples per call whose latency is measured."""
    recalibrate: bool = True
    """Whether batch normalizations measure their statistics again, on a few batches without labels; not where `refine`
    has fitted what reaches them to what it was."""
    skip: tuple[str, ...] = ()
    """Paths of modules whose layers stay, with all they hold; `*` stands for anything, as in `encoder.*`. Statistics of
    batch normalization follow `recalibrate` there too."""

    @model_validator(mode="after")
    def _one_way(self) -> Factorize:
        if sum(value is not None for value in (self.energy, self.ratio, self.rank)) != 1:
            raise ValueError("give `energy`, `ratio` or `rank`, one of the three, such as `energy: 0.9`")
        if self.rank is not None and self.method in NO_RANK:
            raise ValueError(f"`rank` does not say how `method: {self.method}` splits: give `energy` or `ratio`")
        if isinstance(self.rank, int) and self.rank % self.multiple:
            raise ValueError(f"`rank: {self.rank}` is no multiple of {self.multiple}")
        if self.of == "latency" and self.ratio is None:
            raise ValueError("`of: latency` is a target: give `ratio`, the share of the time that may stay")
        if self.rank is not None and "of" in self.model_fields_set:
            raise ValueError("`of` says what `energy` or `ratio` saves, and `rank` leaves no choice: leave `of` out")
        if self.refine != "steps" and "refine_steps" in self.model_fields_set:
            raise ValueError("`refine_steps` are those of `refine: steps`: add that, or leave them out")
        if self.of != "latency" and self.model_fields_set & {"runtime", "batch"}:
            raise ValueError("`runtime` and `batch` say how time is measured: add `of: latency`, or leave them out")
        if self.of == "latency" and self.runtime != TORCH and self.runtime not in catalog().exporters:
            known = ", ".join([TORCH, *catalog().exporters])
            raise ValueError(f"`runtime: {self.runtime}` is not one of {known}")
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """The runtime in which latency is measured."""
        return (catalog().exporters[self.runtime](),) if self.of == "latency" and self.runtime != TORCH else ()

    @property
    def changes(self) -> frozenset[Change]:
        """Layers and their weights."""
        return frozenset({Change.ARCHITECTURE, Change.WEIGHTS})

    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Replace the layers that are worth it.

        Raises:
            ModelError: a pattern in `skip` matches no module, a weight is not finite, `ratio` is out of reach, or
                `rank` is above the full rank of a layer.
        """
        from compress_core.modes import leave_fused_paths
        from compress_core.selecting import matching
        from compress_factorize.attention import open_attention
        from compress_factorize.layers import find_layers, put
        from compress_factorize.ranks import NEEDED, SAVES_NOTHING, options
        from compress_factorize.recalibration import recalibrate

        before = sum(parameter.numel() for parameter in model.parameters())
        timed = self._stopwatch(model, run) if self.of == "latency" else None
        attention = open_attention(model)
        found = find_layers(model, run, matching(model, self.skip))
        layers = options(model, run, found, self.method, from_data=self.fit == "data")
        chosen = self._choose(layers, found) if timed is None else self._timed(model, layers, timed, attention, run)
        original = deepcopy(model) if self.refine != "none" else None
        replaced = {path: layers[path].factors(ranks) for path, ranks in chosen.items()}
        for path, option in layers.items():
            if path in replaced:
                model = put(model, path, replaced[path].pieces)
            elif not found.is_left(path):
                needed = self.ratio is not None and len(option.candidates(self.multiple, self.of))
                found.leave(path, NEEDED[self.of] if needed else SAVES_NOTHING)
        attention.close(model)
        leave_fused_paths(model, replaced)
        run.say(_told(replaced, found.left, before, sum(parameter.numel() for parameter in model.parameters())))
        if replaced and original is not None:
            self._refine(original, model, replaced, run)
        elif replaced and self.recalibrate:
            recalibrate(model, run)
        return model

    def _refine(self, original: nn.Module, model: nn.Module, replaced: Mapping[str, Factors], run: Run) -> None:
        """Fit every chain on its own to what its layer gave, and tell by how much that helps."""
        from compress_factorize.fitting import fit_pieces

        steps = self.refine_steps if self.refine == "steps" else 0
        fits = fit_pieces(
            original, model, {path: factors.pieces for path, factors in replaced.items()}, run, steps=steps
        )
        told = ", ".join(f"{path} {fit.before:.1%} to {fit.after:.1%}" for path, fit in fits.items())
        run.say(f"factorize: error of the outputs on batches held out, before and after fitting: {told}")

    def _choose(self, layers: Mapping[str, Option], found: Found) -> Ranks:
        """The ranks of each layer that is replaced."""
        from compress_factorize.ranks import Budget, by_energy, by_evbmf, by_rank

        if self.energy is not None:
            return by_energy(layers, self.energy, self.multiple, self.of)
        if self.rank == "evbmf":
            return by_evbmf(layers, self.multiple, found)
        if self.rank is not None:
            return by_rank(layers, self.rank)
        assert self.ratio is not None
        return Budget(layers, self.multiple, self.of).ranks(self.ratio)

    def _stopwatch(self, model: nn.Module, run: Run) -> Stopwatch:
        """Times networks beside this one."""
        from compress_core.stopwatch import Stopwatch, exporter_of

        return Stopwatch(model, exporter_of(self.runtime), self.batch, run)

    def _timed(
        self, model: nn.Module, layers: Mapping[str, Option], timed: Stopwatch, attention: Opened, run: Run
    ) -> Ranks:
        """The ranks with which a call takes a share of its time, measured here, told and recorded."""
        import torch

        from compress_factorize.latency import by_latency
        from compress_factorize.ranks import Budget

        assert self.ratio is not None
        budget = Budget(layers, self.multiple, "macs")
        ranks, taken = by_latency(model, layers, budget, self.ratio, timed, opened=attention)
        threads = torch.get_num_threads()
        if ranks is None:
            raise ModelError(
                f"a call cannot take {self.ratio:.3g} of its time in {self.runtime}: with the smallest ranks it takes "
                f"{taken:.3g}, measured on this machine with {threads} threads",
                mend="give a larger `ratio`, skip fewer layers, or try another `method`",
            )
        found = {path: list(entry) for path, entry in ranks.items()}
        run.record("factorize", {"runtime": self.runtime, "batch": self.batch, "threads": threads, "ranks": found})
        run.say(
            f"factorize: a call of {self.batch} takes {taken:.0%} of the dense network's time in {self.runtime} "
            f"with {threads} threads, measured beside it on this machine"
        )
        return ranks


def _told(replaced: Mapping[str, Factors], left: Mapping[str, list[str]], before: int, after: int) -> str:
    """One line: what was replaced, with the relative error of each, and what was left and why."""
    reasons = "; ".join(f"{reason}: {', '.join(paths)}" for reason, paths in sorted(left.items()))
    if not replaced:
        return f"factorize: nothing changed ({reasons or 'there is no layer to factorize'})"
    done = ", ".join(
        f"{path} (rank {'/'.join(map(str, factors.ranks))}, error {factors.error:.1%})"
        for path, factors in replaced.items()
    )
    layers = "1 layer" if len(replaced) == 1 else f"{len(replaced)} layers"
    rest = f"; left: {reasons}" if reasons else ""
    return f"factorize: {layers} replaced, {before:,} to {after:,} parameters: {done}{rest}"


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Factorize, Substitute]


@hookimpl
def register_modules() -> list[type[nn.Module]]:
    """The modules that a saved network may contain."""
    from compress_factorize.blocks import Residual

    return [Residual]
