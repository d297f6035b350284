"""Settings to pipeline, read from YAML and written to it.

Two spellings of the same pipeline are understood: the documented short form (`labels`, `encoder`,
`retrieval`, `rerank`) and a list of named steps under `pipeline`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from lmm_classifier import registry
from lmm_classifier.config.rerank import RerankSettings
from lmm_classifier.config.service import ServiceSettings
from lmm_classifier.errors import ConfigError
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import BatchSize, Flag, SearchBackend, Share, Temperature, TopK
from lmm_classifier.pipeline import Pipeline, Step
from lmm_classifier.storage.atomic_files import is_single_file
from lmm_classifier.yaml_settings import Settings, explain, naming, place_of, read_yaml


class RetrievalSettings(Settings):
    """`retrieval:` where to look, how many neighbours, what the labels' names weigh, and the two cuts.

    Where neither threshold is set, the index's calibration decides, if it has one; what is left out and not
    calibrated has its documented default (temperature 0.07, thresholds 0.6 and 0.35).
    A `text_weight` above 0 adds the step `text_prior`, with the encoder and the labels of these settings.
    """

    index_path: Path
    top_k: TopK = 10
    temperature: Temperature | None = None
    text_weight: Share = 0.0
    confidence_threshold: Share | None = None
    open_set_threshold: Share | None = None
    metric: Literal["cosine"] = "cosine"
    backend: SearchBackend = "faiss"
    milvus_uri: str | None = None
    milvus_collection: str | None = None


class PipelineConfig(Settings):
    """Settings of a classifier.

    Attributes:
        labels: closed list of labels that may be answered; None means all labels of the index.
        allow_unknown: False gives every image one of the labels.
        encoder: makes the query vectors; must be the one that built the index.
        batch_size: images that go through the models together.
        cache_dir: where the checkpoints of all models are looked for and kept, unless a model names a folder
            of its own; None leaves it to the hub's library and its environment variables.
        service: what `lmm-classifier serve` offers, besides classifying, and to whom.
        pipeline: the long form; excludes `labels`, `allow_unknown`, `encoder`, `retrieval` and `rerank`.
    """

    labels: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    allow_unknown: Flag = True
    encoder: ModelSpec = ModelSpec("siglip")
    retrieval: RetrievalSettings | None = None
    rerank: RerankSettings = RerankSettings()
    batch_size: BatchSize = 16
    cache_dir: Path | None = None
    service: ServiceSettings = ServiceSettings()
    pipeline: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        short = self.model_fields_set & {"labels", "allow_unknown", "encoder", "retrieval", "rerank"}
        if self.pipeline is not None and short:
            raise ValueError(f"`pipeline` lists every step, so {sorted(short)[0]!r} has no place beside it")
        if self.pipeline is None and self.retrieval is None:
            raise ValueError("retrieval.index_path is required: the index to look things up in")
        return self

    @classmethod
    def from_yaml(cls, path: str | Path) -> PipelineConfig:
        """Read and check a YAML file; relative paths in it start at its folder.

        Raises:
            ConfigError: unreadable, or wrong in any way; one line names the key and the remedy.
        """
        path = Path(path)
        with naming(path, cls):
            raw: PipelineConfig = cls.model_validate(read_yaml(path))
            config: PipelineConfig = _anchored(raw, path.absolute().parent)
            config.steps()
        return config

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The settings as YAML text, complete but for unset options; also written to `path` if given."""
        body = self.model_dump(mode="json", exclude_none=True)
        if self.pipeline is not None:
            kept = ("batch_size", "cache_dir", "service", "pipeline")
            body = {key: body[key] for key in kept if key in body}
        text = yaml.safe_dump(body, sort_keys=False, allow_unicode=True)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def changed(self, changes: Mapping[str, Any], folder: Path) -> PipelineConfig:
        """These settings, in the short form, with some of them changed.

        Args:
            changes: dotted key, such as "retrieval.top_k" -> value as in YAML.
            folder: what relative paths among them start from.

        Raises:
            ConfigError: an unknown key, a value out of range, or settings that list their steps.
        """
        if self.pipeline is not None:
            raise ConfigError("settings that list their steps under `pipeline` cannot be changed by key")
        body = self.model_dump(mode="json", exclude_unset=True)
        for key, value in changes.items():
            place, last = place_of(body, key)
            place[last] = value
        try:
            config: PipelineConfig = _anchored(PipelineConfig.model_validate(body), folder)
        except ValidationError as error:
            raise ConfigError(explain(error, PipelineConfig)) from error
        config.steps()
        return config

    def steps(self) -> tuple[Step, ...]:
        """The steps these settings mean. Free: no model or index is opened.

        Raises:
            ConfigError: an unknown step or option.
        """
        return tuple(map(self.cached, self._as_written()))

    def step(self, name: str, options: Mapping[str, Any]) -> Step:
        """A step beside those of the classifier, with options as in YAML; as free as `steps`.

        Raises:
            ConfigError: an unknown step or option.
        """
        return self.cached(make_step(name, options))

    def cached(self, step: Step) -> Step:
        """The step, with `cache_dir` for those of its models that name no folder."""
        return _kept_in(step, self.cache_dir)

    def build(self) -> Pipeline:
        """The pipeline these settings mean, its wiring checked. Free, as `steps` is."""
        return Pipeline(self.steps(), self.batch_size)

    def _as_written(self) -> tuple[Step, ...]:
        return tuple(map(_step, self._short_form() if self.pipeline is None else _linked(self.pipeline)))

    def _short_form(self) -> Sequence[Mapping[str, Any]]:
        retrieval = self.retrieval
        if retrieval is None:
            raise ConfigError("retrieval.index_path is required")
        retrieve = {
            "index": retrieval.index_path,
            "k": retrieval.top_k,
            "labels": self.labels,
            "backend": retrieval.backend,
            "milvus_uri": retrieval.milvus_uri,
            "milvus_collection": retrieval.milvus_collection,
        }
        open_set = {
            "confidence_threshold": retrieval.confidence_threshold,
            "open_set_threshold": retrieval.open_set_threshold,
            "min_delta": self.rerank.min_delta,
            "allow_unknown": self.allow_unknown,
        }
        rerank = {
            **self.rerank.options(),
            "model": self.rerank.spec(),
            "index": retrieval.index_path if self.rerank.exemplars else None,
        }
        steps: tuple[Mapping[str, Any], ...] = (
            {"embed": {"encoder": self.encoder}},
            {"retrieve": retrieve},
            {"vote": {"temperature": retrieval.temperature}},
            *([{"text_prior": {"weight": retrieval.text_weight}}] if retrieval.text_weight else []),
            {"open_set": open_set},
            *([{"rerank": rerank}] if self.rerank.enabled else []),
        )
        return _linked(steps)


def model_spec(**options: str | bool | Path | None) -> ModelSpec:
    """A ModelSpec from options given as text.

    Raises:
        ConfigError: an option is out of range.
    """
    try:
        return TypeAdapter(ModelSpec).validate_python(options)
    except ValidationError as error:
        raise ConfigError(explain(error, ModelSpec)) from error


def _linked(specs: Iterable[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Fill in what one step takes from another unless it says otherwise.

    `text_prior` and `zero_shot` take the encoder of `embed`, `text_prior` index and labels of `retrieve` as
    well; `vote` and `open_set` the calibration of that index, `vote` unless `open_set` has a threshold of its
    own, and `rerank` likewise. `rerank` takes from `open_set` whether unknowns are allowed, `open_set` from
    `rerank` how many candidates.
    """
    linked: list[Mapping[str, Any]] = []
    specs = tuple(specs)
    by_hand = any(_sets_a_threshold(spec.get("open_set")) for spec in specs)
    inherited: dict[str, dict[str, Any]] = {"vote": {}, "text_prior": {}, "rerank": {}, "zero_shot": {}}
    inherited["open_set"] = _given(specs, "rerank", "max_candidates")
    for spec in specs:
        options: dict[str, Any] = {}
        for name, given in spec.items():
            if not isinstance(given, Mapping | None):
                raise ConfigError(f"pipeline: the options of {name!r} must be a mapping, got {given!r}")
            options[name] = {**inherited.get(name, {}), **(given or {})}
        for name, keys in (("embed", ("encoder",)), ("retrieve", ("index", "labels"))):
            given = options.get(name, {})
            inherited["text_prior"] |= {key: given[key] for key in keys if key in given}
        if "encoder" in options.get("embed", {}):
            inherited["zero_shot"]["encoder"] = options["embed"]["encoder"]
        index = options.get("retrieve", {}).get("index")
        if isinstance(index, str | Path) and not is_single_file(Path(index)):
            inherited["open_set"]["calibration"] = index
            if not by_hand:
                inherited["vote"]["calibration"] = inherited["rerank"]["calibration"] = index
        if "allow_unknown" in options.get("open_set", {}):
            inherited["rerank"]["allow_unknown"] = options["open_set"]["allow_unknown"]
        linked.append(options)
    return linked


def _given(specs: Iterable[Mapping[str, Any]], step: str, option: str) -> dict[str, Any]:
    """The option of that step, wherever it stands, where it is given."""
    for spec in specs:
        options = spec.get(step)
        if isinstance(options, Mapping) and option in options:
            return {option: options[option]}
    return {}


def _sets_a_threshold(open_set: Any) -> bool:
    keys = ("confidence_threshold", "open_set_threshold")
    return isinstance(open_set, Mapping) and any(open_set.get(key) is not None for key in keys)


def _step(spec: Mapping[str, Any]) -> Step:
    if len(spec) != 1:
        raise ConfigError(f"pipeline: each step is one `name: {{options}}`, got the keys {list(spec)}")
    [(name, options)] = spec.items()
    return make_step(name, options or {})


def make_step(name: str, options: Mapping[str, Any]) -> Step:
    """The step of a name, with options as they are written in YAML. Free: no model or file is opened.

    Raises:
        ConfigError: an unknown step or option, or one out of range.
    """
    cls = registry.resolve("step", name)
    try:
        step: Step = TypeAdapter(cls).validate_python(options)
    except ValidationError as error:
        raise ConfigError(f"{name}.{explain(error, cls)}") from error
    return step


def _kept_in(step: Step, cache_dir: Path | None) -> Step:
    """The step with this cache for those of its models that name none."""
    if cache_dir is None or not dataclasses.is_dataclass(step):
        return step
    kept: Step = dataclasses.replace(step, **_models_kept_in(_options(step), cache_dir))
    return kept


def _models_kept_in(value: Any, cache_dir: Path) -> Any:
    if isinstance(value, ModelSpec):
        return value if value.cache_dir else dataclasses.replace(value, cache_dir=cache_dir)
    if isinstance(value, tuple):
        return tuple(_models_kept_in(item, cache_dir) for item in value)
    if isinstance(value, dict):
        return {key: _models_kept_in(item, cache_dir) for key, item in value.items()}
    return value


def _anchored(value: Any, base: Path) -> Any:
    """Make relative paths, and weights that look like one, start at `base`."""
    if isinstance(value, Path):
        return base / value.expanduser()
    if isinstance(value, tuple):
        return tuple(_anchored(item, base) for item in value)
    if isinstance(value, ModelSpec):
        folders = {name: _anchored(getattr(value, name), base) for name in ("cache_dir", "offload_folder")}
        return dataclasses.replace(value, weights=_anchored_weights(value.weights, base), **folders)
    if isinstance(value, RerankSettings):
        fields = {key: _anchored(getattr(value, key), base) for key in value.model_fields_set}
        return value.model_copy(update=fields | {"model_name": _anchored_weights(value.model_name, base)})
    if isinstance(value, PipelineConfig) and value.pipeline is not None:
        steps = [_anchored(step, base) for step in value._as_written()]
        pipeline = tuple({s.name: _options(s)} for s in steps)
        fields = {key: _anchored(getattr(value, key), base) for key in ("cache_dir", "service")}
        return value.model_copy(update={"pipeline": pipeline, **fields})
    if isinstance(value, BaseModel):
        update = {key: _anchored_field(key, getattr(value, key), base) for key in value.model_fields_set}
        return value.model_copy(update=update)
    if isinstance(value, Step) and dataclasses.is_dataclass(value):
        options = {key: _anchored_field(key, v, base) for key, v in _options(value).items()}
        return dataclasses.replace(value, **options)
    return value


def _anchored_field(name: str, value: Any, base: Path) -> Any:
    """As `_anchored`, also for text that names a file.

    So do options of an operation, which no model has checked yet, and a Milvus URI that is no URL.
    """
    if name == "milvus_uri" and isinstance(value, str) and "://" not in value:
        return str(base / Path(value).expanduser())
    if name == "weights" and isinstance(value, str):
        return _anchored_weights(value, base)
    if name in {"store", "cache_dir", "offload_folder"} and isinstance(value, str):
        return str(base / Path(value).expanduser())
    if isinstance(value, Mapping):  # options of an operation, as they are written
        return {key: _anchored_field(key, inner, base) for key, inner in value.items()}
    return _anchored(value, base)


def _anchored_weights(weights: str, base: Path) -> str:
    if weights.startswith("~"):
        return str(Path(weights).expanduser())
    return str((base / weights).resolve()) if weights.startswith(("./", "../")) else weights


def _options(step: Any) -> dict[str, Any]:
    return {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
