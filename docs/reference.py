"""Writes docs/reference.md from what the plugins say of themselves: `python docs/reference.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from compress_core.catalog import Catalog, catalog
from compress_core.listing import describe, kind_of_value, kinds, shown

HERE = Path(__file__).parent
HEAD = """\
# Reference

Made from the plugins by `python docs/reference.py`. `compress plugins NAME` shows the same for what is installed.
"""


def pages(plugins: Catalog) -> Iterator[str]:
    """The reference of every built-in part, kind by kind."""
    yield HEAD
    for kind, parts in kinds(plugins).items():
        yield f"## {kind.capitalize()}s\n"
        for name, part in sorted(parts.items()):
            if plugins.owner(part).distribution == "compress-core":
                yield from section(plugins, kind, name)


def section(plugins: Catalog, kind: str, name: str) -> Iterator[str]:
    """What one part is, an example, and its parameters."""
    (found,) = (part for part in describe(plugins, name)["parts"] if (part["kind"], part["name"]) == (kind, name))
    yield f"### {name}\n\n{found['about']}\n"
    if found["example"]:
        stream = StringIO()
        YAML().dump({name: found["example"]}, stream)
        yield f"```yaml\n{stream.getvalue()}```\n"
    if not found["parameters"]:
        yield "It has no parameters.\n"
        return
    yield "| parameter | values | default | what it is |\n|---|---|---|---|"
    for parameter, entry in found["parameters"].items():
        default = "required" if entry["required"] else f"`{shown(entry.get('default'))}`"
        cells = (f"`{parameter}`", kind_of_value(entry), default, entry.get("description", ""))
        yield "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"
    yield ""


def reference() -> str:
    """The whole page."""
    return "\n".join(pages(catalog()))


if __name__ == "__main__":
    (HERE / "reference.md").write_text(reference(), encoding="utf-8")
