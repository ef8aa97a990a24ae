"""Pruning by rounds: a share goes, the network trains, more goes; or it goes back.

    iterative     s_r = 1 - (1 - s)^(r / R)   (geometric: each round takes the same share of what is left)
                  s_r = s r / R               (linear)
    lottery       the same shares; what survives gets its early weights back before each training:
                  w <- w_early * mask,   w_early those at the begin, or after the share `rewind` of a first training
    progressive   s' = 1 - (1 - s)(1 - d), kept if the quality is at most `max_loss` points below the first;
                  else back to s, d <- d / 2; until d is below its smallest value or s has reached the amount

Each round ranks anew, what is gone stays gone, and the step's other techniques train with it: their epochs are those
of one round. Shares, targets and multiples are of the network that comes in: channels are held at zero from round to
round and cut out in the end, when their number is known.

Source: Han et al. 2015, Learning both weights and connections, sec. 3.4 (iterative); Frankle & Carbin 2019, The
lottery ticket hypothesis, sec. 1 and 2; Frankle et al. 2020, Linear mode connectivity, sec. 3 (rewinding to k > 0);
Yang et al. 2018, NetAdapt, sec. 3.1 (small steps with a bound). Cost: one training per round, and one more for a
lottery; for `progressive` at most some log(1 - s) / log(1 - d) + log2(d / smallest d).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from compress_core.errors import ModelError, TrainingError
from compress_core.parts import TrainingTechnique
from compress_prune import Prune
from compress_prune.conditions import BELONGS
from compress_prune.depthwise import count_blocks

if TYPE_CHECKING:
    from compress_core.measure import Curve, Quality
    from compress_core.parts import Train
    from compress_core.run import Run
    from compress_prune.masks import Removal


@dataclass
class Between:
    """What goes from one round to the next."""

    masks: Removal | None = None
    """What is gone."""
    early: dict[str, Tensor] = field(default_factory=dict)
    """The weights that survivors get back; none unless the network is rewound."""
    blocks: int = 0
    """How many blocks there were at first; those that go are taken out in each round."""

    said: list[str] = field(default_factory=list)
    """What the last round said of what can go."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """What it chose by measuring this machine."""
    curves: list[Curve] = field(default_factory=list)
    """What the first round measured."""

    def listening(self, run: Run) -> Run:
        """A run whose notes are kept until it is known which round is the last one."""
        self.said, self.chosen = [], {}
        curves: list[Curve] = [] if self.masks is None else list(self.curves)
        self.curves = curves
        plotter = curves.append if self.masks is None else _nobody
        return replace(run, teller=self.said.append, recorder=self.chosen.__setitem__, plotter=plotter)

    def tell(self, run: Run) -> None:
        """Hand on what was kept."""
        for text in self.said:
            run.say(text)
        for name, value in self.chosen.items():
            run.record(name, value)
        for curve in self.curves:
            run.plotter(curve)


class Round(Prune):
    """One round: everything up to a share goes before the first update, nothing is cut out."""

    amount: float | None = Field(default=None, gt=0, le=1)
    """The share that goes; all where it is blocks, of those that are still there."""
    between: Any
    """What came out of the round before, and takes what comes out of this one."""

    def begin(self, model: nn.Module, run: Run) -> nn.Module:
        """Remove what scores least beside what is gone, and rewind the rest."""
        before = self.between.masks
        masks = self._masks(model, self.between.listening(run))
        if before is not None:
            carry(before, masks)
        masks.grow(model, 1.0, run)
        if self.between.early:
            restore(model, self.between.early)
            masks.hold(model)
        return masks

    def finish(self, model: nn.Module, state: nn.Module | None, run: Run) -> nn.Module:
        """Hand on what is gone."""
        self.between.masks = state
        return model


class Early(TrainingTechnique):
    """Keeps the weights as they are after a share of the training."""

    name = "prune"
    share: float
    between: Any

    def after_step(self, model: nn.Module, state: nn.Module | None, progress: float, run: Run) -> None:
        """Keep them once."""
        if progress >= self.share and not self.between.early:
            self.between.early = snapshot(model)


def conduct(technique: Prune, model: nn.Module, train: Train, run: Run) -> nn.Module:
    """Prune by rounds, as the schedule says.

    Raises:
        CompressError: nothing can go, a target cannot be met, or no network holds the bound.
    """
    if technique.schedule == "progressive":
        return _progressive(technique, model, train, run)
    between = Between(blocks=count_blocks(technique, model, run))
    if technique.schedule == "lottery":
        model = technique.prepare(model, run)
        if technique.rewind:
            model = train(model, Early(share=technique.rewind, between=between))
            if not between.early:
                raise TrainingError(
                    f"the training stopped before {technique.rewind:.0%} of it, so that `rewind` has no weights",
                    mend="lower `rewind`, or train without early stopping",
                )
        else:
            between.early = snapshot(model)
            model = train(model, None)
    points = []
    for number, share in enumerate(shares(technique.share, technique.rounds, technique.spacing), start=1):
        model = train(model, round_of(technique, share, between, model=model, run=run))
        quality = run.evaluate(model)
        points.append((share, quality.value))
        run.progress(f"prune: round {number}/{technique.rounds}: {share:.1%} gone, {told(quality)}")
    _plot(points, quality, run)
    back = {"iterative": "", "lottery": f", with the weights of {technique.rewind:.0%} of the training each time"}
    rounds = "1 round" if technique.rounds == 1 else f"{technique.rounds} rounds"
    run.say(f"prune: {rounds}{back[technique.schedule]}, {told(quality)} on validation")
    return _finished(technique, model, between, run)


def shares(amount: float, rounds: int, spacing: str) -> list[float]:
    """The share that is gone after each round, the last one `amount`."""
    if spacing == "linear":
        return [amount * number / rounds for number in range(1, rounds)] + [amount]
    return [1 - (1 - amount) ** (number / rounds) for number in range(1, rounds)] + [amount]


def round_of(technique: Prune, share: float, between: Between, *, model: nn.Module, run: Run) -> Round | None:
    """The technique that takes the conductor's place in one training; None if no further block is to go."""
    if between.blocks:
        still = count_blocks(technique, model, run)
        due = round(share * between.blocks) - (between.blocks - still)
        if due <= 0:
            return None
        share = due / still
    own = {name: getattr(technique, name) for name in technique.model_fields_set if name not in BELONGS}
    return Round(**{**own, "amount": share, "schedule": "one-shot", "between": between})


def _progressive(technique: Prune, model: nn.Module, train: Train, run: Run) -> nn.Module:
    bound = Bound.of(technique, model, run)
    best, quality = model, run.evaluate(model)
    if not bound.holds(quality):
        best = train(deepcopy(model), None)
        quality = bound.checked(run.evaluate(best), run)
    between = Between(blocks=count_blocks(technique, model, run))
    share, step, failed, points = 0.0, technique.step, False, [(0.0, quality.value)]
    while share < technique.share and step >= technique.smallest_step:
        wanted = min(1 - (1 - share) * (1 - step), technique.share)
        ahead = replace(between)
        if (stand_in := round_of(technique, wanted, ahead, model=best, run=run)) is None:
            share = wanted
            continue
        candidate = train(deepcopy(best), stand_in)
        found = run.evaluate(candidate)
        points.append((wanted, found.value))
        holds = bound.holds(found) or run.max_batches is not None
        verdict = "kept" if holds else "taken back"
        run.progress(f"prune: {wanted:.1%} gone, {told(found)}, {verdict}")
        if holds:
            best, quality, between, share = candidate, found, ahead, wanted
        else:
            if between.masks is None and not failed:  # the training itself may be at fault
                bound.checked(run.evaluate(train(deepcopy(model), None)), run)
            failed, step = True, step / 2
        if run.max_batches is not None:
            break
    _plot(sorted(points), quality, run)
    if between.masks is None:
        more = f"even {points[-1][0]:.1%} less loses more than {technique.max_loss:g} points"
        tried = more if failed else "nothing to take"
        run.say(f"prune: {tried}: nothing changed")
        return best
    trainings = "1 training" if len(points) == 2 else f"{len(points) - 1} trainings"
    run.say(f"prune: {share:.1%} gone after {trainings}: {told(quality)}, {bound}")
    return _finished(technique, best, between, run)


@dataclass(frozen=True)
class Bound:
    """The quality that has to be kept."""

    reference: Quality
    whose: str
    max_loss: float
    """In points."""

    @classmethod
    def of(cls, technique: Prune, model: nn.Module, run: Run) -> Bound:
        """That of the teacher if there is one, else of the network that comes in, less the points that may be lost."""
        assert technique.max_loss is not None
        if run.teacher is not None:
            return cls(run.evaluate(run.teacher), "the teacher", technique.max_loss)
        return cls(run.evaluate(model), "the network that came in", technique.max_loss)

    def holds(self, quality: Quality) -> bool:
        """Whether a quality is good enough."""
        return quality.within(self.max_loss, self.reference)

    def checked(self, quality: Quality, run: Run) -> Quality:
        """The quality of a network that was trained without any pruning.

        Raises:
            TrainingError: not even that holds the bound.
        """
        if not self.holds(quality) and run.max_batches is None:
            lost = quality.points_below(self.reference)
            raise TrainingError(
                f"even with nothing pruned, the network that this step trains has {told(quality)}: {self}",
                mend=f"train longer or at a lower learning rate, or raise `max_loss` above {lost:.2f}",
            )
        return quality

    def __str__(self) -> str:
        return f"at most {self.max_loss:g} points may be lost of {self.reference.value:.4f}, which {self.whose} has"


def told(quality: Quality) -> str:
    """A quality in words."""
    return f"{quality.name} {quality.value:.4f}"


@torch.no_grad()
def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors of a network."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def restore(model: nn.Module, early: dict[str, Tensor]) -> None:
    """Give a network the tensors that it had.

    Raises:
        ModelError: it has others now.
    """
    now = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if now != {name: tensor.shape for name, tensor in early.items()}:
        raise _changed()
    model.load_state_dict(early)


def carry(before: Removal, masks: Removal) -> None:
    """What was gone is gone.

    Raises:
        ModelError: the masks are not of the same network.
    """
    old, new = dict(before.named_buffers(recurse=False)), dict(masks.named_buffers(recurse=False))
    if {name: mask.shape for name, mask in old.items()} != {name: mask.shape for name, mask in new.items()}:
        raise _changed()
    for name, mask in old.items():
        if name != "done":
            new[name].copy_(mask)


def _changed() -> ModelError:
    return ModelError(
        "another technique of this step changes the layers of the network from round to round",
        mend="use it in a step of its own, before this one",
    )


def _finished(technique: Prune, model: nn.Module, between: Between, run: Run) -> nn.Module:
    masks = between.masks
    if masks is None:
        run.say(f"prune: {technique.share:.0%} of {between.blocks} blocks is none: nothing changed")
        return model
    between.tell(run)
    masks.hold(model)
    return masks.finish(model, run)


def _plot(points: list[tuple[float, float]], quality: Quality, run: Run) -> None:
    run.plot("quality by rounds", points, x="share that is gone", y=f"validation {quality.name}")


def _nobody(said: object) -> None:
    """Sees no curve that an earlier round has shown."""
