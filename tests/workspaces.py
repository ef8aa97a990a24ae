"""A workspace in a temporary folder, with real git and real DVC."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEMPLATE = (
    "dvc.yaml",
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvcignore",
    ".gitignore",
    "artifacts/none/.gitkeep",
    "flows",
    "prefect.toml",
)

HEAD = """\
seed: 0
threads: 1
device: cpu
precision: float32
reference: baseline
data:
  source: digits
model:
  factory: compress_zoo:MLP
  params:
    widths: [16]
task:
  name: classification
pipeline:
"""
"""A small network on the digits; steps follow."""

SMALL = f"""\
{HEAD}  baseline:
    input: none
    teacher: none
    use:
      tune:
        epochs: 2
        learning_rate: 0.01
  clipped:
    input: baseline
    teacher: none
    use:
      clip:
        share: 0.2
  onnx:
    input: clipped
    teacher: none
    use:
      export:
        format: onnx
  student:
    input: none
    teacher: baseline
    use:
      distill:
        temperature: 2
      tune:
        epochs: 1
"""
"""Four steps in two branches, each done in a moment."""


def make_workspace(folder: Path, recipe: str = SMALL) -> Path:
    """Lay a workspace out in `folder`, which is made."""
    folder.mkdir(parents=True)
    for name in TEMPLATE:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    (folder / "params.yaml").write_text(recipe)
    for command in (["init", "-q", "-b", "main"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


def change(folder: Path, old: str, new: str, file: str = "params.yaml") -> None:
    """Replace a text that stands once in a file of the workspace."""
    path = folder / file
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
    path.write_text(text.replace(old, new))


def run(folder: Path, *command: str, status: int | None = 0, **variables: str) -> str:
    """Run a command in the workspace and return what it prints; `status` is what it must end with."""
    done = subprocess.run(
        command,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(**variables),
        check=False,
    )
    assert status is None or done.returncode == status, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def environment(**variables: str) -> dict[str, str]:
    """This process's, with the commands of its environment in front and nobody's home telemetry."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1", **variables}


def repro(folder: Path, *arguments: str, status: int | None = 0) -> list[str]:
    """Run `dvc repro`; the names of the stages that ran, without `lock`, which always does."""
    printed = run(folder, "dvc", "repro", *arguments, status=status)
    return executed(printed)


def executed(printed: str) -> list[str]:
    """The stages that DVC says it ran, as steps are called, without `lock`."""
    ran = [line for line in printed.splitlines() if line.startswith("Running stage")]
    found = [line.partition("'")[2].partition("'")[0] for line in ran]
    return [name.removeprefix("step@") for name in found if name != "lock"]
