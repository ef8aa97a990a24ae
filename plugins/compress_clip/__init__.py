"""Weight clipping: every weight whose magnitude does not exceed a threshold goes, and stays away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from compress_core import hookimpl
from compress_core.errors import ModelError
from compress_core.parts import Technique
from compress_core.selecting import matching

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress_core.run import Run


class Clip(Technique):
    """Set every weight w with |w| <= threshold to zero: w * 1[|w| > threshold].

    Weights are the parameters of two or more axes (linear, convolution, embedding, recurrent, attention);
    norms and biases stay. What goes stays zero in every later training. The network gets no faster by it,
    but its file packs better.
    """

    name = "clip"
    example: ClassVar[dict[str, Any]] = {"share": 0.3}

    threshold: float | None = Field(default=None, ge=0)
    """The magnitude up to which weights go. Give this or `share`."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """The share of the weights that goes, the smallest first. Equal magnitudes go or stay together."""
    scope: Literal["tensor", "global"] = "tensor"
    """Whether `share` holds for each tensor by itself or over the whole network."""
    skip: tuple[str, ...] = ()
    """Paths of modules that stay as they are, with all they hold; `*` stands for anything, as in `encoder.*`."""

    @model_validator(mode="after")
    def _one_way(self) -> Clip:
        if (self.threshold is None) == (self.share is None):
            raise ValueError("give `threshold` or `share`, one of the two, such as `share: 0.3`")
        if self.threshold is not None and self.scope == "global":
            raise ValueError("an absolute `threshold` has no scope: leave `scope` out, or give `share` instead")
        return self

    def apply(self, model: nn.Module, run: Run) -> nn.Module:
        """Clip the weights in place and hold their zeros.

        Raises:
            ModelError: the network has no weights to clip, or a pattern in `skip` matches no module.
        """
        import torch

        from compress_clip.threshold import clip
        from compress_core.masks import hold_zeros
        from compress_core.weights import weights

        places = weights(model, matching(model, self.skip).values())
        if not places:
            raise ModelError("the network has no weights to clip", mend="shorten `skip`")
        tensors = [place.parameter for place in places]
        before = sum(int(weight.count_nonzero()) for weight in tensors)
        with torch.no_grad():
            for place, weight, threshold in zip(places, tensors, self._thresholds(tensors), strict=True):
                if threshold is not None:
                    weight.copy_(clip(weight, threshold))
                    if not weight.all():
                        hold_zeros(place.module, place.tensor)
        after = sum(int(weight.count_nonzero()) for weight in tensors)
        total = sum(weight.numel() for weight in tensors)
        said = f"{before - after} of {total} weights went" if after < before else "no weight went: nothing changed"
        run.say(f"clip: {said}; {total - after} are zero now")
        return model

    def _thresholds(self, weights: Sequence[Tensor]) -> list[float | None]:
        from compress_clip.threshold import threshold_for

        if self.share is None:
            return [self.threshold] * len(weights)
        if self.scope == "global":
            return [threshold_for(weights, self.share)] * len(weights)
        return [threshold_for([weight], self.share) for weight in weights]


@hookimpl
def register_techniques() -> list[type[Technique]]:
    """The techniques of this plugin."""
    return [Clip]
