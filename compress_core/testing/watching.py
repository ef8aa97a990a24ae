"""The kit for plugins that watch: a stage's life, played to them."""

from __future__ import annotations

import tempfile
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from compress_core import hookspecs
from compress_core.errors import RecipeError
from compress_core.testing.nets import make_net
from compress_core.testing.report import ConformanceError
from compress_core.testing.subject import Snapshot
from compress_core.watching import Stage

WATCHING = ("stage_started", "scalar_logged", "stage_finished", "stage_failed")
"""The hooks of a watcher."""


def check_watcher(plugin: ModuleType | str) -> dict[str, int]:
    """Play three stages to a watcher: one that ends well, one that fails, and an export.

    Args:
        plugin: the module that your entry point names, or its name.

    Returns:
        the size in bytes of each file that it wrote, by `STAGE/FILE`.

    Raises:
        ConformanceError: a hook is misspelt or raises, or the watcher touches what is not its own.
    """
    module = import_module(plugin) if isinstance(plugin, str) else plugin
    manager = _registered(module)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name in ("trained", "failed", "exported"):
            (root / name).mkdir()
        _play(manager, root)
        if strays := sorted(path.name for path in root.iterdir() if path.name not in {"trained", "failed", "exported"}):
            raise ConformanceError(f"it writes {strays[0]!r} beside the stage's folder", mend="write into stage.folder")
        return {str(path.relative_to(root)): path.stat().st_size for path in sorted(root.rglob("*")) if path.is_file()}


def _registered(module: ModuleType) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module, module.__name__)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise ConformanceError(
            f"a hook does not fit: {error}", mend=f"compare with compress_core.hookspecs: {', '.join(WATCHING)}"
        ) from error
    if not any(getattr(manager.hook, hook).get_hookimpls() for hook in WATCHING):
        raise ConformanceError(
            f"{module.__name__} watches nothing", mend=f"mark one of {', '.join(WATCHING)} with @hookimpl"
        )
    return manager


def _play(manager: pluggy.PluginManager, root: Path) -> None:
    stages = trained, failed, exported = [
        Stage(name, root / name, {"tune.epochs": 2, "prune.skip": ["head"], "prune.amount": 0.5})
        for name in ("trained", "failed", "exported")
    ]
    model = make_net("mlp")
    before = Snapshot.of(model)
    metrics = {"quality": {"name": "accuracy", "value": 0.9}, "bytes": 1024, "notes": ["prune: half is gone"]}
    given = {"metrics": metrics, **{f"parameters of {stage.name!r}": stage.parameters for stage in stages}}
    kept = deepcopy(given)
    _tell(manager, "stage_started", stage=trained)
    _tell(manager, "stage_started", stage=failed)
    for step in (1, 2, 3):
        _tell(manager, "scalar_logged", stage=trained, name="train/loss", value=1 / step, step=step)
    _tell(manager, "scalar_logged", stage=failed, name="train/loss", value=float("nan"), step=1)
    _tell(manager, "stage_finished", stage=trained, model=model, metrics=metrics)
    _tell(manager, "stage_failed", stage=failed, error=RecipeError("it does not work", mend="mend it"))
    _tell(manager, "stage_started", stage=exported)
    _tell(manager, "stage_finished", stage=exported, model=None, metrics=metrics)
    if change := before.difference(model):
        raise ConformanceError(f"the watched network is not as it was: {change}", mend="watch, and change nothing")
    if changed := [name for name, value in given.items() if value != kept[name]]:
        raise ConformanceError(f"the {changed[0]} are not as they were", mend="copy the mapping before you change it")


def _tell(manager: pluggy.PluginManager, hook: str, **arguments: Any) -> None:
    try:
        getattr(manager.hook, hook)(**arguments)
    except Exception as error:
        raise ConformanceError(
            f"{type(error).__name__}: {error}",
            where=hook,
            mend="a stage may log any figure, fail early, or end without a network; cope with each",
        ) from error
