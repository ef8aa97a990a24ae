"""What `dvc repro` would run, and why: known before anything runs.

DVC knows which stages have changed (`dvc status`); `dvc.lock` holds the parameters of their last run, so that
the very field, plugin or file can be named that differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from compress_core.files import write_text
from compress_core.lock import lock, to_yaml
from compress_core.recipe import Recipe, Step
from compress_core.workspace import LOCK, PARAMS, Workspace

STAGE = "step@"
"""How DVC calls the stage of a step, before its name."""
FEW = 3
"""How many changed fields of one file are named before the rest is counted."""
NEVER = "it never ran"

Values = Mapping[str, Any]
_NOTHING = object()
"""Stands where a mapping has no such key."""


@dataclass(frozen=True)
class Planned:
    """One step, and whether it would run."""

    step: Step
    reasons: tuple[str, ...] = ()
    """Why it would run; empty if it would not. One that only comes after others runs unless they come out as before."""
    unknown: str = ""
    """Why DVC cannot tell whether it would run."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.step.name,
            "input": self.step.input,
            "teacher": self.step.teacher,
            "use": {key: dict(value) for key, value in self.step.use.items()},
            "runs": None if self.unknown else bool(self.reasons),
            "reasons": list(self.reasons),
            "unknown": self.unknown or None,
        }


def plan(recipe: Recipe, workspace: Workspace) -> list[Planned]:
    """The steps in an order in which they can run. Brings `step.lock.yaml` up to date, as `dvc repro` does.

    Raises:
        CompressError: a module or file that the recipe names does not exist.
    """
    locked = to_yaml(lock(recipe, workspace))
    status = _status(workspace, locked)
    if isinstance(status, str):
        return [Planned(step, unknown=status) for step in recipe.steps.values()]
    account = _Account(status, workspace)
    data = account.reasons("data")
    found: dict[str, tuple[str, ...]] = {}
    for step in recipe.steps.values():
        behind = [name for name in step.needs if found[name]]
        own = account.reasons(f"{STAGE}{step.name}", made_by={f"artifacts/{name}" for name in behind})
        found[step.name] = own if NEVER in own else own + tuple(_before(behind, data))
    return [Planned(step, found[step.name]) for step in recipe.steps.values()]


def last_stages(workspace: Workspace) -> Values:
    """What `dvc.lock` remembers of every stage that has run, by its name."""
    stages: Values = _read(workspace, "dvc.lock").get("stages") or {}
    return stages


def data_are_current(recipe: Recipe, workspace: Workspace) -> bool:
    """Whether `artifacts/data` was last made by the data source as it is now."""
    before: Values = last_stages(workspace).get("data", {}).get("params", {})
    now = _read(workspace, PARAMS)
    if before.get(PARAMS) != {key: now.get(key) for key in ("data", "seed")}:
        return False
    return bool(before.get(LOCK) == {"data": lock(recipe, workspace)["data"]})


def _status(workspace: Workspace, locked: str) -> Values | str:
    """What changed for each stage that has changed, as DVC tells it; or why DVC does not tell."""
    if not (workspace.root / "dvc.yaml").is_file():
        return "there is no dvc.yaml"
    write_text(workspace.lock, locked)
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout) if done.returncode == 0 else None
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return said[-1].removeprefix("ERROR: ") if said else f"`dvc status` ended with {done.returncode}"


class _Account:
    """DVC's account of what has changed, in words."""

    def __init__(self, status: Values, workspace: Workspace) -> None:
        self.status = status
        self.last = last_stages(workspace)
        self.now = {name: _read(workspace, name) for name in (PARAMS, LOCK)}

    def reasons(self, stage: str, made_by: Iterable[str] = ()) -> tuple[str, ...]:
        """Why a stage would run.

        Args:
            stage: as DVC calls it.
            made_by: dependencies that are made anew before it, of which nothing needs to be said.
        """
        changes = self.status.get(stage, [])
        if changes and stage not in self.last:
            return (NEVER,)
        silent = {"artifacts/data", *made_by} if self.status.get("data") else set(made_by)
        found: list[str] = []
        for change in changes:
            if isinstance(change, str):
                found.append("its command changed" if change == "changed command" else change)
                continue
            for path, state in change.get("changed deps", {}).items():
                if path in self.now:
                    found.extend(self._parameters(stage, path, state))
                elif path not in silent:
                    found.append(_state_of([path], state))
            found.extend(_outputs(change.get("changed outs", {})))
        return tuple(dict.fromkeys(found))

    def _parameters(self, stage: str, file: str, state: Any) -> Iterator[str]:
        """The fields of a file of parameters that differ from those of the last run."""
        before: Values = self.last[stage].get("params", {}).get(file, {})
        keys = state if isinstance(state, Mapping) else before
        found = [text for key in keys for text in _named(key, before.get(key), _at(self.now[file], key), file)]
        yield from found[:FEW] or [f"{', '.join(keys)} changed"]
        if len(found) > FEW:
            yield f"{len(found) - FEW} more of {file} changed"


def _before(steps: Sequence[str], data: Sequence[str]) -> Iterator[str]:
    """What is made anew before a step; where the reasons for the data are told with a step, they are not again."""
    yield from (f"it comes after {name}" for name in steps)
    if data and not steps:
        yield f"the data are made anew: {', '.join(data)}"


def _read(workspace: Workspace, name: str) -> Values:
    try:
        found = YAML(typ="safe").load((workspace.root / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _at(values: Values, key: str) -> Any:
    """The value at a dotted key."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _changes(before: Any, after: Any, path: str, *, whole: bool) -> Iterator[tuple[str, Any, Any]]:
    """The leaves that differ, with their dotted paths; a mapping that came or went is a leaf where `whole`."""
    mappings = [isinstance(value, Mapping) for value in (before, after)]
    if all(mappings) or (any(mappings) and not whole):
        old, new = (value if isinstance(value, Mapping) else {} for value in (before, after))
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(old.get(key, _NOTHING), new.get(key, _NOTHING), f"{path}.{key}", whole=whole)
    elif before != after:
        yield path, before, after


def _differs(before: Any, after: Any) -> str:
    if before is _NOTHING:
        return "is new"
    if after is _NOTHING:
        return "is gone"
    values = [value for value in (before, after) if not isinstance(value, (Mapping, list))]
    return f"changed from {before} to {after}" if len(values) == 2 else "changed"


def _named(key: str, before: Any, after: Any, file: str) -> Iterator[str]:
    """The fields at `key` that differ, each with what became of it."""
    for path, old, new in _changes(before, after, key, whole=file == PARAMS):
        yield f"{path} {_differs(old, new)}" if file == PARAMS else _source(path.removeprefix(f"{key}."), old, new)


def _source(path: str, before: Any, after: Any) -> str:
    """An entry of step.lock.yaml that differs: `core`, `plugins.NAME`, `code.MODULE`, `files.FILE`, `versions.NAME`."""
    kind, _, name = path.partition(".")
    words = {"core": "compress_core", "plugins": f"the plugin {name}", "code": f"the module {name}"}
    called = words.get(kind, name)
    hashes = kind != "versions" and _NOTHING not in (before, after)
    return f"{called} {'changed' if hashes else _differs(before, after)}"


def _outputs(states: Values) -> Iterator[str]:
    """What is wrong with results, those of one kind together."""
    by_state: dict[str, list[str]] = {}
    for path, state in states.items():
        by_state.setdefault(str(state), []).append(path)
    yield from (_state_of(paths, state) for state, paths in by_state.items())


def _state_of(paths: list[str], state: Any) -> str:
    """How DVC finds files: `artifacts/a is missing`."""
    verb = "is" if len(paths) == 1 else "are"
    words = {"deleted": f"{verb} missing", "modified": "changed since", "new": f"{verb} new"}
    return f"{', '.join(paths)} {words.get(str(state), f'{verb} {state}')}"
