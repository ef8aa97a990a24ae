"""Which part of the core computes: a change in it makes every result old, a change elsewhere none.

A new module belongs into one of the two sets; a test asks for it, and until then it counts as one that computes.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from compress_core.hashes import files_below, hash_tree

COMPUTES = frozenset(
    {
        "applying",  # a step on a live network
        "artifact",  # the bytes of a model
        "attention",  # taken apart
        "channels",  # what goes together
        "data",  # batches
        "factory",  # initial weights
        "files",  # the bytes of a folder
        "forwards",  # of layers that are kept as integers or codes
        "masks",  # held zeros
        "measure",  # the metrics
        "modes",
        "order",  # who works first
        "parts",  # defaults of the contracts
        "plain_values",
        "plan",  # defaults of a training
        "precision",
        "rebuilding",
        "recipe",  # what a step is
        "run",
        "seeding",
        "sharing",
        "selecting",  # which modules a pattern means
        "stage",
        "stopwatch",  # choices that rest on measured time
        "structure",
        "training",
        "weights",
    }
)
"""Modules of the core on which the result of a step depends."""
ASIDE = frozenset(
    {
        "__init__",  # names only
        "catalog",  # finds plugins, whose sources are hashed themselves
        "checkpoints",  # rewrites files that no step reads
        "cleaning",  # takes away what no recipe names
        "cli",
        "computing",
        "door",  # from Python, without steps
        "errors",  # words
        "hashes",
        "hookspecs",  # signatures
        "imports",  # finds the user's code, which is hashed itself
        "listing",  # shows
        "lock",
        "planning",  # shows what would run
        "processes",  # run commands
        "report",  # beside the results, see MEASURES
        "schema",  # for editors
        "sources",
        "testing",  # of plugins
        "timing",  # of the report stage, see MEASURES
        "trial",  # leaves nothing
        "unpacking",  # of what was exported
        "watching",  # tells, and changes nothing
        "workspace",  # names of files
    }
)
"""Modules whose changes leave every result as it was. A module in neither set counts as one that computes."""
FOR_DATA = frozenset({"data", "files", "parts", "recipe", "seeding", "sharing"})
"""The part of the core that makes artifacts/data."""
MEASURES = frozenset({"measure", "report", "timing"})
"""The part of the core that makes the report."""

SOURCES = frozenset({".py", ".j2"})
"""Endings of the files that count."""


def core_hash(modules: Collection[str] | None = None) -> str:
    """The hash of the core's modules, of all that compute unless some are named."""
    folder = Path(__file__).parent
    names = {file: core_module(file) for file in files_below(folder) if file.suffix in SOURCES}
    chosen = [file for file, name in names.items() if (name not in ASIDE if modules is None else name in modules)]
    return hash_tree(chosen, folder)


def core_module(file: Path) -> str:
    """The module or package right below compress_core to which a file belongs."""
    return file.relative_to(Path(__file__).parent).with_suffix("").parts[0]
