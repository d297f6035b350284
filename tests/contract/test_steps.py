"""One battery over every registered step, built-in or installed."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from lmm_classifier import registry
from lmm_classifier.api.build_index import build_index
from lmm_classifier.collection.sources.source import SourceOptions, read_source
from lmm_classifier.collection.train import train
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline, Step
from lmm_classifier.regions import RegionSelector
from lmm_classifier.types import Sample
from synthetic import COLOURS, picture, write_corpus

FAKE = ModelSpec("fake")
FIELDS = {field.name for field in dataclasses.fields(Sample)}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    build_index(write_corpus(folder / "corpus"), folder / "index", encoder=FAKE)
    return folder / "index"


@pytest.fixture(scope="module")
def store(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifiers of persons: the steps before have focussed on one."""
    folder = tmp_path_factory.mktemp("contract") / "store"
    where = RegionSelector("prominent_person", persons=FAKE, on_missing="fallback")
    source = SourceOptions({"fake": FAKE}, where=where)
    assert len(train(read_source(str(index.parent / "corpus"), source, []), folder).trained) == 3
    return folder


@pytest.fixture(scope="module")
def options(index: Path, store: Path) -> dict[str, dict[str, Any]]:
    """For each step, options under which it has something to do."""
    return {
        "detect": {"model": {"family": "fake"}},
        "focus": {"kind": "person", "on_missing": "fallback"},
        "segment": {"model": {"family": "fake"}, "prompts": [{}, {"points": [[1, 2]]}]},
        "segment_panoptic": {"model": {"family": "fake"}},
        "embed": {"encoder": {"family": "fake"}},
        "retrieve": {"index": str(index), "k": 5},
        "vote": {"temperature": 0.1},
        "text_prior": {
            "encoder": {"family": "fake"},
            "index": str(index),
            "weight": 0.3,
            "labels": [*COLOURS, "purple"],
        },
        "open_set": {"confidence_threshold": 0.999, "open_set_threshold": 0.1},
        "rerank": {"model": {"family": "fake"}, "max_candidates": 2},
        "caption": {"model": {"family": "fake"}, "prompt": "a drawing of", "batch_size": 2},
        "label": {"model": {"family": "fake"}, "top_k": 2},
        "zero_shot": {"labels": [*COLOURS, "purple"], "encoder": {"family": "fake"}},
        "classify": {"store": str(store), "persons": {"family": "fake"}},
    }


@pytest.fixture
def samples() -> list[Sample]:
    return [
        Sample.from_image(f"s{i}", picture(colour, seed=900 + i), truth=label)
        for i, (label, colour) in enumerate(COLOURS.items())
    ]


def make(name: str, options: dict[str, dict[str, Any]]) -> Step:
    return TypeAdapter(registry.resolve("step", name)).validate_python(options.get(name, {}))


def before(name: str, options: dict[str, dict[str, Any]], samples: list[Sample]) -> list[Sample]:
    """Samples as they reach the step: everything before it in the table has run."""
    names = list(registry.BUILTINS["step"])
    earlier = names[: names.index(name)] if name in names else names  # a plug-in may read whatever there is
    return list(Pipeline(tuple(make(n, options) for n in earlier)).run(samples))


@pytest.mark.parametrize("name", registry.names("step"))
class TestEveryStep:
    def test_is_a_frozen_value_that_says_what_it_reads_and_sets(
        self, name: str, options: dict[str, dict[str, Any]]
    ) -> None:
        step = make(name, options)
        assert step.name == name
        assert step.requires <= FIELDS
        assert step.provides <= FIELDS - {"sample_id", "image", "truth", "timings"}
        assert step == make(name, options)
        assert hash(step) == hash(make(name, options))
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(step, dataclasses.fields(step)[0].name, None)  # type: ignore[arg-type]

    def test_refuses_unknown_options(self, name: str, options: dict[str, dict[str, Any]]) -> None:
        with pytest.raises(ValidationError, match="nonsense"):
            TypeAdapter(registry.resolve("step", name)).validate_python(
                {**options.get(name, {}), "nonsense": 1}
            )

    def test_keeps_samples_and_changes_only_what_it_provides(
        self, name: str, options: dict[str, dict[str, Any]], samples: list[Sample]
    ) -> None:
        step, given = make(name, options), before(name, options, samples)
        step.load()
        step.load()
        result = step.run(given)
        assert [s.sample_id for s in result] == [s.sample_id for s in given]
        for old, new in zip(given, result, strict=True):
            for field in FIELDS - step.provides:
                assert getattr(old, field) is getattr(new, field), field
            for field in step.provides - {"skipped"}:  # set where a photo lacks what the step needs
                assert getattr(new, field) is not None, field

    def test_of_nothing_makes_nothing(self, name: str, options: dict[str, dict[str, Any]]) -> None:
        assert make(name, options).run([]) == []

    def test_answers_do_not_depend_on_the_batch(
        self, name: str, options: dict[str, dict[str, Any]], samples: list[Sample]
    ) -> None:
        step, given = make(name, options), before(name, options, samples)
        together = step.run(given)
        alone = [step.run([sample])[0] for sample in given]
        for field in step.provides:
            for a, b in zip(together, alone, strict=True):
                assert_same(getattr(a, field), getattr(b, field))


def assert_same(a: Any, b: Any) -> None:
    """Equal, arrays within rounding, whatever they are nested in."""
    if isinstance(a, np.ndarray):
        np.testing.assert_allclose(a, b, atol=1e-6)
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif hasattr(a, "items"):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, float):
        assert a == pytest.approx(b, abs=1e-6)
    else:
        assert a == b


def test_constructing_steps_opens_no_model_library() -> None:
    code = (
        "import sys; from lmm_classifier.config.pipeline import PipelineConfig\n"
        "PipelineConfig(retrieval={'index_path': 'nowhere'}).build()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_arrays_that_flow_cannot_be_written(
    options: dict[str, dict[str, Any]], samples: list[Sample]
) -> None:
    [sample, *_] = before("rerank", options, samples)
    arrays = [*sample.embeddings.values(), sample.neighbours.similarity, sample.scores.values]  # type: ignore[union-attr]
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_builtin_names_all_resolve() -> None:
    for kind, table in registry.BUILTINS.items():
        for name in table:
            cls = registry.resolve(kind, name)
            assert importlib.import_module(cls.__module__)
