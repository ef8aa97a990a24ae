"""A technique at work on the kit's networks, watched for what it must not touch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_core.applying import apply_techniques
from compress_core.artifact import load, save
from compress_core.errors import ArtifactError
from compress_core.order import changes_numbers, check_together, trains
from compress_core.parts import Technique, TrainingTechnique
from compress_core.testing.digits import Epochs, digits, make_run
from compress_core.testing.nets import factory_of, make_net
from compress_core.testing.report import ConformanceError, Refusal, attempt

BATCHES = 2
"""As many as the kit trains and evaluates on; it asks whether things work, not how well."""


class Subject:
    """A technique and what it makes of each network by itself, made once."""

    def __init__(self, technique: Technique) -> None:
        self.technique = technique
        self.notes: dict[str, list[str]] = {}
        self._results: dict[str, nn.Module | Refusal] = {}

    @property
    def company(self) -> list[Technique]:
        """The technique, and a training beside it if it does nothing without one."""
        return with_training([self.technique])

    @property
    def leaves_numbers(self) -> str | None:
        """Its name if a network's numbers have another format after it."""
        return self.technique.name if changes_numbers([self.technique], before=False) else None

    def on(self, net: str) -> nn.Module | Refusal:
        """What it makes of a network, or why it refuses."""
        if net not in self._results:
            self._results[net] = attempt(lambda: self.again(net))
        return self._results[net]

    def again(self, net: str) -> nn.Module:
        """What it makes of a network, made anew."""
        notes = self.notes[net] = []
        return take_step(make_net(net), self.company, teacher=net, notes=notes)

    def accepted(self, wanted: Sequence[str], nets: Sequence[str]) -> str | None:
        """The first network that it does not refuse, those in `wanted` before the rest of `nets`."""
        order = [*(net for net in wanted if net in nets), *(net for net in nets if net not in wanted)]
        return next((net for net in order if isinstance(self.on(net), nn.Module)), None)


def with_training(techniques: Sequence[Technique]) -> list[Technique]:
    """The techniques, and `Epochs` if one of them does nothing without training and none brings it."""
    needed = any(isinstance(technique, TrainingTechnique) and technique.needs_epochs for technique in techniques)
    return [*techniques, Epochs()] if needed and not trains(techniques) else list(techniques)


def take_step(
    model: nn.Module,
    techniques: Sequence[Technique],
    *,
    teacher: str,
    numbers_from: str | None = None,
    notes: list[str] | None = None,
) -> nn.Module:
    """One step as a recipe would run it: the check of the recipe, then the work.

    Args:
        model: the network that comes in.
        techniques: those that share the step.
        teacher: the network of the kit that teaches, if one of the techniques needs a teacher.
        numbers_from: the technique, if any, that has changed the format of the numbers before.
        notes: takes what the techniques say.

    Raises:
        CompressError: the techniques cannot share a step, or one of them refuses.
        ConformanceError: the input, the teacher or torch's global state is not as it was.
    """
    teaches = any(technique.needs_teacher for technique in techniques)
    check_together(techniques, teacher=teaches, numbers_from=numbers_from)
    run = make_run(
        teacher=make_net(teacher, seed=1) if teaches else None,
        max_batches=BATCHES,
        teller=(lambda text: None) if notes is None else notes.append,
    )
    watched = {"input": model} | ({"teacher": run.teacher} if run.teacher is not None else {})
    before = {role: Snapshot.of(network) for role, network in watched.items()}
    world = {name: get() for name, (get, _) in _WORLD.items()}
    result = apply_techniques(model, techniques, run)
    _refuse_changed_world(world)
    for role, network in watched.items():
        if change := before[role].difference(network):
            raise ConformanceError(
                f"the {role} is not as it was: {change}",
                mend=f"work on the network that you are given, not on the {role}",
            )
    return result


_WORLD: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "choice of deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
}
"""What a technique could change for everybody: how to read it and how to set it back."""


def _refuse_changed_world(before: dict[str, Any]) -> None:
    changed = [name for name, (get, _) in _WORLD.items() if get() != before[name]]
    for name in changed:
        _WORLD[name][1](before[name])
    if changed:
        raise ConformanceError(
            f"torch's {changed[0]} is not as it was", mend="use a context manager, which sets it back"
        )


def round_trip(model: nn.Module, net: str) -> nn.Module:
    """The network as it comes back from disk.

    Raises:
        ConformanceError: it cannot be saved, or it comes back as another.
    """
    with tempfile.TemporaryDirectory() as folder:
        written(model, net, Path(folder) / "model")
        loaded = load(Path(folder) / "model", factory=factory_of(make_net(net)))
    if not torch.equal(outputs(model), outputs(loaded)):
        raise ConformanceError(
            "the saved network gives other outputs",
            mend="keep what the forward uses in tensors, constructor arguments or plain attributes",
        )
    return loaded


def written(model: nn.Module, net: str, folder: Path) -> dict[str, bytes]:
    """The files of the saved network.

    Raises:
        ConformanceError: it cannot be saved.
    """
    try:
        save(model, folder, factory=factory_of(make_net(net)))
    except ArtifactError as error:
        raise ConformanceError(
            f"the network cannot be saved: {error.what}",
            mend=error.mend or "leave behind only modules that the artifact can rebuild",
        ) from error
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@torch.no_grad()
def outputs(model: Any, examples: int = 64) -> Tensor:
    """The logits for the first validation images; `model` is a network in eval mode or an exported one."""
    run = make_run()
    logits = run.task.logits(run.forward(model, digits().validation.take(torch.arange(examples))))
    return logits.clone()


@dataclass(frozen=True)
class Snapshot:
    """A network's tensors and the state of its modules at one moment."""

    tensors: dict[str, Tensor]
    modules: dict[str, tuple[object, ...]]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """The network as it is now."""
        tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return cls(tensors, {path: _state(module) for path, module in model.named_modules()})

    def difference(self, model: nn.Module) -> str:
        """What has changed since, or nothing."""
        now = Snapshot.of(model)
        for name in sorted({*self.tensors, *now.tensors}):
            one, other = self.tensors.get(name), now.tensors.get(name)
            if one is None or other is None or one.shape != other.shape or not _same_bits(one, other):
                return f"the tensor {name!r} has changed"
        for path in sorted({*self.modules, *now.modules}):
            if self.modules.get(path) != now.modules.get(path):
                return f"the module {path or 'at the root'!r} has changed (type, mode, hooks, attributes or gradients)"
        return ""

    @property
    def architecture(self) -> dict[str, object]:
        """The types of the modules, and the shapes and formats of the tensors."""
        kinds: dict[str, object] = {path: state[0] for path, state in self.modules.items()}
        return kinds | {f"{name}:": (tuple(tensor.shape), tensor.dtype) for name, tensor in self.tensors.items()}


def _state(module: nn.Module) -> tuple[object, ...]:
    return (
        type(module),
        module.training,
        {name: len(value) for name, value in vars(module).items() if "_hooks" in name and value is not None},
        sorted(vars(module)),
        [(parameter.requires_grad, parameter.grad is None) for parameter in module.parameters(recurse=False)],
    )


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
