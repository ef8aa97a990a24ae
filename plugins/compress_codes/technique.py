"""What the techniques share that keep weights as codes: when coding begins, what is kept, and what is said of it."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from compress_core.parts import Change, TrainingPlan, TrainingTechnique

if TYPE_CHECKING:
    from torch import nn

    from compress_codes.placing import Candidate, Held, MakeCoder
    from compress_core.run import Run


class Codes(TrainingTechnique):
    """Weights become codes. Each kind of codes says which coder a weight has."""

    delay: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training after which the network computes with codes; before, with real weights. The best epoch
    is chosen after it. Without training it means nothing."""
    skip: tuple[str, ...] = ()
    """Paths of modules that stay real, with all they hold; `*` stands for anything, as in `encoder.*`."""

    @property
    def changes(self) -> frozenset[Change]:
        """The format of the numbers."""
        return frozenset({Change.NUMBERS})

    @abstractmethod
    def maker(self, run: Run) -> MakeCoder:
        """What gives each weight its coder, or says why the weight stays real; asked once for a network."""

    def plan(self, plan: TrainingPlan, run: Run) -> TrainingPlan:
        """Choose no epoch before the network computes with codes."""
        return replace(plan, select_from=max(plan.select_from, self.delay))

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Put a coder beside every weight that can be coded, in place.

        Raises:
            ModelError: a pattern in `skip` matches no module, or a weight is not finite.
        """
        from compress_codes.placing import attach

        report = attach(model, self.skip, self.maker(run))
        self._say_left(report.left, run)
        return model

    def begin(self, model: nn.Module, run: Run) -> None:
        """Begin to compute with codes, unless that is delayed."""
        from compress_codes.placing import start

        if not self.delay:
            start(model)

    def after_step(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
        """Begin to compute with codes when the delay is over."""
        from compress_codes.placing import places, start

        if progress < self.delay:
            return
        start(model)
        share = (progress - self.delay) / (1 - self.delay)
        for coder, weight in places(model).values():
            coder.follow(share, weight)

    def finish(self, model: nn.Module, state: nn.Module | None, run: Run) -> nn.Module:
        """Keep the codes.

        Raises:
            ModelError: a weight is not finite.
        """
        from compress_codes.placing import hold_codes

        held = hold_codes(model)
        self._say_left(held.left, run)
        run.say(f"{self.name}: {said(held)}")
        return held.model

    def _say_left(self, left: Mapping[str, str], run: Run) -> None:
        """Say what stays real and why, one line for each reason."""
        for reason in Counter(left.values()):
            names = ", ".join(name or "the network itself" for name, why in left.items() if why == reason)
            run.say(f"{self.name}: left real: {names} ({reason})")


def said(held: Held) -> str:
    """What is kept, in a line."""
    if not held.weights:
        return "no weight of the network can be coded: nothing changed"
    widths = ", ".join(f"{count} of {bits} bits" for bits, count in sorted(held.bits.items()))
    change = f"{held.before:,} bytes of weights are {held.after:,} bytes of codes, scales and tables"
    grown = " : THE NETWORK GROWS" if held.after > held.before else ""
    return f"{held.weights} weights are codes ({widths}); {change}{grown}"


def too_small(coded: int, place: Candidate) -> str:
    """Why a weight stays real whose codes would take as many bytes as it takes; empty if they take fewer."""
    real = place.weight.nbytes
    return "" if coded < real else f"its codes would take {coded} bytes where it takes {real}"
