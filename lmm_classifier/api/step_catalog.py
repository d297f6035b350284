"""What steps there are: the same names, types and ranges that YAML, Python, the shell and HTTP take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from lmm_classifier import registry


@dataclass(frozen=True, slots=True)
class StepEntry:
    """One step.

    Attributes:
        name: as in YAML.
        summary: first line of its description.
        requires, provides: fields of a sample that it reads and sets, sorted.
        parameters: one line per option: name, type, default.
        schema: JSON schema of its options.
    """

    name: str
    summary: str
    requires: tuple[str, ...]
    provides: tuple[str, ...]
    parameters: tuple[str, ...]
    schema: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types."""
        return asdict(self)


def catalogue() -> tuple[StepEntry, ...]:
    """All steps in the order of the registry.

    Raises:
        ConfigError: an installed step cannot be imported.
    """
    return tuple(_entry(name) for name in registry.names("step"))


def _entry(name: str) -> StepEntry:
    cls = registry.resolve("step", name)
    schema = TypeAdapter(cls).json_schema()
    required = schema.get("required", [])
    return StepEntry(
        name=name,
        summary=(cls.__doc__ or "").strip().partition("\n")[0],
        requires=tuple(sorted(cls.requires)),
        provides=tuple(sorted(cls.provides)),
        parameters=tuple(
            _parameter(key, body, key in required) for key, body in schema.get("properties", {}).items()
        ),
        schema=schema,
    )


def _parameter(name: str, schema: dict[str, Any], required: bool) -> str:
    default = "required" if required else f"default {schema.get('default')!r}"
    return f"{name}: {_type(schema)} ({default})"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(_type(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))
