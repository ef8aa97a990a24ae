"""`clip`: small weights go, and the units that are dead without them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_core.errors import ModelError
from compress_core.parts import Change, Technique
from compress_core.selecting import matching

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_core.channels.coupling import LeftAlone
    from compress_core.run import Run

WAYS = ("threshold", "share", "deviations", "max_loss")


class Clip(Technique):
    """Set every weight w with |w| <= threshold to zero: w * 1[|w| > threshold], and take out what is dead without it.

    Weights are the parameters of two or more axes (linear, convolution, embedding, recurrent, attention);
    norms and biases stay. What goes stays zero in every later training. Units of linear layers and convolutions
    that no weight feeds or reads any more are removed, and what they still say goes into the next bias: the network
    gets smaller and computes the same. Single zeros alone make no network faster, but its file packs better.
    """

    name = "clip"
    example: ClassVar[dict[str, Any]] = {"share": 0.3}

    threshold: float | None = Field(default=None, ge=0)
    """The magnitude up to which weights go. Give one of this, `share`, `deviations` and `max_loss`."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """The share of the weights that goes, the smallest first. Equal magnitudes go or stay together."""
    deviations: float | None = Field(default=None, gt=0)
    """The threshold of each tensor in standard deviations of its weights that are not zero, as in 0.5."""
    max_loss: float | None = Field(default=None, ge=0)
    """The largest share goes that loses at most so many points of the validation quality, found by bisection.
    A point is a hundredth where more is better (0.5 of accuracy: from 0.970 to 0.965), and one per cent of the
    incoming quality where less is better (an error)."""
    scope: Literal["tensor", "global"] = "tensor"
    """Whether the share holds for each tensor by itself or over the whole network."""
    adjust: bool = True
    """Whether units that are dead then are removed. In one step with `factorize` the clipping then comes first, and
    `factorize` leaves layers with removed weights alone: use two steps."""
    skip: tuple[str, ...] = ()
    """Paths of modules that stay as they are, with all they hold; `*` stands for anything, as in `encoder.*`."""

    @model_validator(mode="after")
    def _one_way(self) -> Clip:
        given = [name for name in WAYS if getattr(self, name) is not None]
        if len(given) != 1:
            names = ", ".join(f"`{name}`" for name in WAYS)
            raise ValueError(f"give one of {names}, such as `share: 0.3`")
        if self.scope == "global" and given[0] in {"threshold", "deviations"}:
            raise ValueError(f"`{given[0]}` has no scope: leave `scope` out, or give `share` or `max_loss` instead")
        return self

    @property
    def changes(self) -> frozenset[Change]:
        """The weights, and the architecture where dead units go."""
        weights = frozenset({Change.WEIGHTS})
        return weights | {Change.ARCHITECTURE} if self.adjust else weights

    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Clip the weights in place, hold their zeros and remove dead units.

        Raises:
            ModelError: the network has no weights to clip, or a pattern in `skip` matches no module.
        """
        from compress_core.masks import hold_zeros
        from compress_core.weights import weights

        skipped = matching(model, self.skip)
        places = weights(model, skipped.values())
        if not places:
            mend = "shorten `skip`" if self.skip else "clip before the step that makes integers of the weights"
            raise ModelError("the network has no weights to clip", mend=mend)
        tensors = [place.parameter for place in places]
        before = sum(int(weight.count_nonzero()) for weight in tensors)
        _clip_in_place(tensors, self._thresholds(model, tensors, run))
        for place, weight in zip(places, tensors, strict=True):
            if not weight.all():
                hold_zeros(place.module, place.tensor)
        after = sum(int(weight.count_nonzero()) for weight in tensors)
        total = sum(weight.numel() for weight in tensors)
        adjusted, said = self._adjusted(model, run, set(skipped)) if self.adjust else (model, [])
        unchanged = "" if adjusted is not model else ": nothing changed"
        went = f"{before - after} of {total} weights went" if after < before else f"no weight went{unchanged}"
        run.say(f"clip: {went}; {total - after} are zero now")
        for line in said:
            run.say(f"clip: {line}")
        return adjusted

    def _thresholds(self, model: nn.Module, weights: Sequence[Tensor], run: Run) -> list[float | None]:
        from compress_clip.threshold import threshold_of_deviations

        if self.threshold is not None:
            return [self.threshold] * len(weights)
        if self.deviations is not None:
            return [threshold_of_deviations(weight, self.deviations) for weight in weights]
        return self._of_share(weights, self._searched(model, weights, run) if self.share is None else self.share)

    def _of_share(self, weights: Sequence[Tensor], share: float) -> list[float | None]:
        from compress_clip.threshold import threshold_for

        if self.scope == "global":
            return [threshold_for(weights, share)] * len(weights)
        return [threshold_for([weight], share) for weight in weights]

    def _searched(self, model: nn.Module, weights: Sequence[Tensor], run: Run) -> float:
        """The largest share that keeps `max_loss`; the weights are as they were at the end."""
        from compress_clip.bisection import largest

        bound = self.max_loss
        assert bound is not None
        dense = run.evaluate(model)
        originals = [weight.detach().clone() for weight in weights]
        measured = {0.0: dense.value}

        def keeps(share: float) -> bool:
            _restore(weights, originals)
            _clip_in_place(weights, self._of_share(weights, share))
            try:
                clipped = run.evaluate(model)
            except ModelError:  # a quality that is not defined, as a correlation is for constant outputs
                return False
            measured[share] = clipped.value
            return clipped.within(bound, dense)

        found = largest(keeps)
        _restore(weights, originals)
        run.plot("clip: quality over the share", sorted(measured.items()), x="share of zero weights", y=dense.name)
        run.say(
            f"clip: a share of {found:.4g} loses at most {bound:g} points: validation {dense.name} "
            f"{dense.value:.4f} before, {measured[found]:.4f} after"
        )
        return found

    def _adjusted(self, model: nn.Module, run: Run, skip: Collection[str]) -> tuple[nn.Module, list[str]]:
        from compress_clip.dead_units import without_dead_units

        adjusted = without_dead_units(model, run, skip)
        said = []
        if adjusted.removed:
            each = ", ".join(f"{name} {before} to {after}" for name, (before, after) in adjusted.sizes.items())
            folded = f"; {adjusted.folded} of them left a constant in the next bias" if adjusted.folded else ""
            units = "1 dead unit" if adjusted.removed == 1 else f"{adjusted.removed} dead units"
            said.append(f"{units} went ({each}){folded}")
        return adjusted.model, [*said, *_explained(adjusted.stays)]


def _clip_in_place(weights: Sequence[Tensor], thresholds: Sequence[float | None]) -> None:
    import torch

    from compress_clip.threshold import clip

    with torch.no_grad():
        for weight, threshold in zip(weights, thresholds, strict=True):
            if threshold is not None:
                weight.copy_(clip(weight, threshold))


def _restore(weights: Sequence[Tensor], originals: Sequence[Tensor]) -> None:
    import torch

    with torch.no_grad():
        for weight, original in zip(weights, originals, strict=True):
            weight.copy_(original)


def _explained(stays: Sequence[LeftAlone]) -> list[str]:
    """Where dead units stay, one line for each reason."""
    found: dict[str, list[str]] = {}
    for entry in stays:
        found.setdefault(entry.reason, []).extend(entry.names)
    return [f"dead units stay in {', '.join(dict.fromkeys(names))}: {reason}" for reason, names in found.items()]
