"""What `dvc repro` would run, and why: known before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_core.files import write_text
from compress_core.lock import lock, to_yaml
from compress_core.recipe import Recipe, Step
from compress_core.workspace import Workspace

STAGE = "step@"
"""How DVC calls the stage of a step, before its name."""


@dataclass(frozen=True)
class Planned:
    """One step, and whether it would run."""

    step: Step
    reasons: tuple[str, ...] | None
    """Why it would run; empty if it would not, None if DVC does not know this folder."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.step.name,
            "input": self.step.input,
            "teacher": self.step.teacher,
            "use": {key: dict(value) for key, value in self.step.use.items()},
            "runs": None if self.reasons is None else bool(self.reasons),
            "reasons": list(self.reasons or ()),
        }


def plan(recipe: Recipe, workspace: Workspace) -> list[Planned]:
    """The steps in an order in which they can run. Brings `step.lock.yaml` up to date, as `dvc repro` does."""
    status = _status(recipe, workspace)
    if status is None:
        return [Planned(step, None) for step in recipe.steps.values()]
    reasons: dict[str, tuple[str, ...]] = {}
    data = tuple(_reasons(status.get("data", [])))
    for step in recipe.steps.values():
        own = tuple(_reasons(status.get(f"{STAGE}{step.name}", [])))
        behind = tuple(f"{name} runs" for name in step.needs if reasons[name])
        reasons[step.name] = tuple(dict.fromkeys((*own, *behind, *(("the data are made anew",) if data else ()))))
    return [Planned(step, reasons[step.name]) for step in recipe.steps.values()]


def _status(recipe: Recipe, workspace: Workspace) -> Mapping[str, Any] | None:
    if not (workspace.root / "dvc.yaml").is_file():
        return None
    write_text(workspace.lock, to_yaml(lock(recipe, workspace)))
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return None
    return found if done.returncode == 0 and isinstance(found, dict) else None


def _reasons(changes: Any) -> list[str]:
    """DVC's account of what changed for a stage, in words."""
    found: list[str] = []
    for change in changes:
        if isinstance(change, str):
            found.append({"always changed": "it always runs"}.get(change, change))
            continue
        for kind, entries in change.items():
            found.extend(_words(kind, str(path), state) for path, state in dict(entries).items())
    return list(dict.fromkeys(found))


def _words(kind: str, path: str, state: Any) -> str:
    if isinstance(state, Mapping):
        return f"{Path(path).name}: {', '.join(f'{key} {value}' for key, value in state.items())}"
    if kind == "changed outs":
        return f"{path} is {state}"
    return f"{path} {state}" if state != "deleted" else f"{path} is missing"
