"""What `compress plugins`, `check` and `try` show: as tables for a person and as JSON for a machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python
from rich.table import Table
from rich.text import Text

from compress_core import hookspecs
from compress_core.catalog import Catalog, Plugin
from compress_core.errors import PluginError, suggest
from compress_core.parts import Part, Technique
from compress_core.schema import parameters

if TYPE_CHECKING:
    from compress_core.planning import Planned
    from compress_core.trial import Trial

Kinds = Mapping[str, Mapping[str, type[Part]]]


def kinds(plugins: Catalog) -> Kinds:
    """The parts of every kind, by what a person calls the kind."""
    return {
        "technique": plugins.techniques,
        "criterion": plugins.criteria,
        "data source": plugins.data_sources,
        "task": plugins.tasks,
        "export format": plugins.exporters,
    }


def listing(plugins: Catalog) -> list[dict[str, Any]]:
    """Every plugin with the names of its parts."""
    return [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "error": plugin.error or None,
            "watches": _watches(plugins, plugin),
            "parts": {kind: found for kind in kinds(plugins) if (found := _names(plugins, plugin, kind))},
        }
        for plugin in plugins.plugins
    ]


def describe(plugins: Catalog, name: str) -> dict[str, Any]:
    """The parts that are called `name` or belong to the plugin of that name, with their parameters.

    Raises:
        PluginError: there is no such plugin or part.
    """
    found = [
        _description(kind, part)
        for kind, parts in kinds(plugins).items()
        for part in parts.values()
        if name in {part.name, plugins.owner(part).name}
    ]
    if not found:
        broken = {plugin.name: plugin for plugin in plugins.broken}
        if name in broken:
            raise PluginError(f"plugin {name!r} is broken: {broken[name].error}", mend="mend or uninstall it")
        known = {plugin.name for plugin in plugins.plugins} | {
            key for parts in kinds(plugins).values() for key in parts
        }
        if name in known:
            raise PluginError(f"plugin {name!r} has no parts: it watches, or provides networks")
        raise PluginError(f"there is no plugin or part {name!r}", mend=suggest(name, known))
    return {"parts": found}


def plugins_table(plugins: Catalog) -> Table:
    """One row a plugin."""
    table = Table("plugin", "from", "provides", box=None, header_style="bold")
    for entry in listing(plugins):
        if entry["error"]:
            provides = Text(f"broken: {entry['error']}", style="red")
        else:
            parts = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in entry["parts"].items())
            provides = Text(parts or ("watches the stages" if entry["watches"] else "networks"))
        table.add_row(entry["name"], f"{entry['distribution']} {entry['version']}", provides)
    return table


def parts_table(description: Mapping[str, Any]) -> Table:
    """One row a parameter."""
    table = Table("parameter", "type", "default", "what it is", box=None, header_style="bold")
    for part in description["parts"]:
        table.add_section()
        table.add_row(Text(part["name"], style="bold"), part["kind"], "", part["about"])
        for name, entry in part["parameters"].items():
            default = "required" if entry["required"] else shown(entry.get("default"))
            table.add_row(f"  {name}", kind_of_value(entry), default, entry.get("description", ""))
    return table


def plan_table(planned: Sequence[Planned]) -> Table:
    """One row a step, in the order in which they can run."""
    table = Table("step", "input", "teacher", "uses", "runs", "why", box=None, header_style="bold")
    for entry in planned:
        step, why = entry.step, Text("\n".join(entry.reasons) or entry.unknown)
        table.add_row(step.name, step.input or "-", step.teacher or "-", ", ".join(step.use), _runs(entry), why)
    return table


def trial_line(trial: Trial) -> str:
    """How one step went: a line, and one more for each note."""
    if trial.waits_for is not None:
        return f"{trial.step}: not tried, since {trial.waits_for} fails"
    head = f"{trial.step}: {'fails' if trial.error else 'works'} ({trial.seconds:.1f} s)"
    return "\n".join([head, *(f"  {note}" for note in trial.notes)])


def _watches(plugins: Catalog, plugin: Plugin) -> bool:
    """Whether a plugin is told how stages go."""
    hooks = (name for name in vars(hookspecs) if name.startswith(("stage_", "scalar_")))
    callers = plugins.manager.get_hookcallers(plugin.module) or [] if plugin.module is not None else []
    return not {caller.name for caller in callers}.isdisjoint(hooks)


def _names(plugins: Catalog, plugin: Plugin, kind: str) -> list[str]:
    return sorted(name for name, part in kinds(plugins)[kind].items() if plugins.owner(part) is plugin)


def _description(kind: str, part: type[Part]) -> dict[str, Any]:
    about = (part.__doc__ or "").strip().partition("\n\n")[0].replace("\n    ", " ")
    example = dict(part.example) if issubclass(part, Technique) else {}
    found = {name: {**_made(part, name), **entry} for name, entry in parameters(part).items()}
    return {"name": part.name, "kind": kind, "about": about, "example": example, "parameters": found}


def _made(part: type[Part], name: str) -> dict[str, Any]:
    """The default of a parameter that makes it anew for every instance, which a schema leaves out."""
    field = part.model_fields[name]
    if field.default_factory is None or field.default_factory_takes_validated_data:
        return {}
    return {"default": to_jsonable_python(field.get_default(call_default_factory=True))}


def _runs(entry: Planned) -> Text:
    if entry.unknown:
        return Text("unknown", style="dim")
    return Text("yes", style="yellow") if entry.reasons else Text("no", style="green")


def kind_of_value(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words: `number > 0`, `layer | global`, `list of string`, `[integer, integer]`."""
    if "enum" in schema or "const" in schema:
        return " | ".join(shown(value) for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " | ".join(kind_of_value(entry) for entry in schema["anyOf"])
    match schema:
        case {"type": "array", "prefixItems": entries}:
            return f"[{', '.join(map(kind_of_value, entries))}]"
        case {"type": "array", "items": Mapping() as entry}:
            return f"list of {kind_of_value(entry)}"
        case {"type": "array"}:
            return "list"
        case {"type": "object", "additionalProperties": Mapping() as entry}:
            return f"mapping to {kind_of_value(entry)}"
        case {"type": "object"}:
            return "mapping"
    return " ".join([str(schema.get("type", "any")), *_bounds(schema)])


def _bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    yield from (f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)


def shown(value: Any) -> str:
    """A value as a recipe would give it; a text stands without quotes unless it is empty."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
