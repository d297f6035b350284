"""Reading what a person wrote: strict YAML, and what is wrong with it in one line.

The only file that parses YAML: settings (`config/pipeline.py`) and the description of an ONNX model share it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lmm_classifier.errors import ConfigError
from lmm_classifier.registry import did_you_mean

_MAX_YAML_BYTES = 1 << 20
_MAX_YAML_DEPTH = 50
_MAX_YAML_ALIASES = 100  # a few lines of nested aliases can otherwise stand for billions of nodes
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


class Settings(BaseModel):
    """Base of a section of settings: an unknown key is an error, and what was read does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def read_yaml(path: Path) -> Any:
    """The mapping that a file holds; JSON is YAML too.

    Raises:
        ConfigError: unreadable, too large, not UTF-8, not YAML, a key given twice, or no mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_YAML_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from error
    if len(content) > _MAX_YAML_BYTES:
        raise ConfigError(f"larger than {_MAX_YAML_BYTES} bytes; this is not a settings file")
    try:
        text = content.decode("utf-8-sig")
        _refuse_bombs(text)
        body = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 -- a SafeLoader
    except UnicodeDecodeError as error:
        raise ConfigError("not UTF-8 text") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(body, dict):
        raise ConfigError("must be a mapping of settings, such as `retrieval: {index_path: ...}`")
    return body


def read_parameters(assignments: Iterable[str]) -> dict[str, Any]:
    """Options given as `key=value`, values in YAML, dots for what is nested: `model.family=mtcnn`.

    Raises:
        ConfigError: no `=`, a value that is not YAML, or a key given twice.
    """
    options: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not key or not equals:
            raise ConfigError(f"parameter {assignment!r} must be written key=value")
        try:
            _refuse_bombs(text)
            value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 -- a SafeLoader
        except (yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"parameter {key}: {text!r} is not valid YAML") from error
        place, last = place_of(options, key)
        if last in place:
            raise ConfigError(f"parameter {key!r} is given twice")
        place[last] = value
    return options


def place_of(options: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping that a dotted key lies in, made where there is none, and the key's last part.

    Raises:
        ConfigError: something on the way has a value of its own.
    """
    *parents, last = key.split(".")
    place = options
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ConfigError(f"parameter {key!r} lies inside {parent!r}, which has a value already")
    return place, last


def _refuse_bombs(text: str) -> None:
    """Look at the events of the text, which costs nothing, before building what they ask for."""
    aliases = depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if aliases > _MAX_YAML_ALIASES or depth > _MAX_YAML_DEPTH:
            raise ConfigError(
                f"more than {_MAX_YAML_ALIASES} aliases or {_MAX_YAML_DEPTH} levels; no settings need these"
            )


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(f"key {key.value!r} is given twice, line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


@contextmanager
def naming(path: Path, model: Any) -> Iterator[None]:
    """What is wrong with the settings of a file, in one line that begins with its path.

    Raises:
        ConfigError: instead of the block's ValidationError of `model`, or ConfigError.
    """
    try:
        yield
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, model)}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def explain(error: ValidationError, model: Any) -> str:
    """The first problem of a ValidationError in one line, with the nearest key for a misspelt one."""
    problems = error.errors()
    first = next(
        (p for p in problems if p["type"] in _UNKNOWN_KEY), problems[0]
    )  # it often causes the others
    where = ".".join(str(part) for part in first["loc"])
    problem = first["msg"].removeprefix("Value error, ")
    if first["type"] in _UNKNOWN_KEY:
        problem = f"unknown key{did_you_mean(str(first['loc'][-1]), _keys_at(model, first['loc'][:-1]))}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {problem}{more}" if where else f"{problem}{more}"


def _keys_at(model: Any, loc: tuple[int | str, ...]) -> tuple[str, ...]:
    for part in loc:
        fields = getattr(model, "model_fields", getattr(model, "__pydantic_fields__", {}))
        default = fields[part].annotation if part in fields else None
        candidates = [default, *getattr(default, "__args__", ())]
        model = next(
            (c for c in candidates if hasattr(c, "model_fields") or dataclasses.is_dataclass(c)), None
        )
    if hasattr(model, "model_fields"):
        return tuple(model.model_fields)
    return tuple(field.name for field in dataclasses.fields(model)) if dataclasses.is_dataclass(model) else ()
