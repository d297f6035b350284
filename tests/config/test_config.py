from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import ValidationError

from lmm_classifier.config.pipeline import PipelineConfig, make_step
from lmm_classifier.config.rerank import FROM_OTHER_SETTINGS, RerankSettings
from lmm_classifier.decision.policy import Thresholds
from lmm_classifier.errors import ConfigError
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.open_set import OpenSet
from lmm_classifier.steps.rerank import Rerank
from lmm_classifier.steps.retrieve import Retrieve
from lmm_classifier.steps.text_prior import TextPrior
from lmm_classifier.steps.vote import Vote

ROOT = Path(__file__).parents[2]


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("retrieval: {index_path: x, topk: 3}", "retrieval.topk: unknown key; did you mean 'top_k'?"),
        ("retreival: {index_path: x}", "retreival: unknown key; did you mean 'retrieval'?"),
        (
            "rerank: {enabeld: true}\nretrieval: {index_path: x}",
            "rerank.enabeld: unknown key; did you mean 'enabled'?",
        ),
        ("encoder: {family: fake, wieghts: x}\nretrieval: {index_path: x}", "did you mean 'weights'?"),
        ("retrieval: {index_path: x, top_k: many}", "retrieval.top_k: Input should be a valid integer"),
        (
            "retrieval: {index_path: x, top_k: 0}",
            "retrieval.top_k: Input should be greater than or equal to 1",
        ),
        ("retrieval: {index_path: x, confidence_threshold: 1.5}", "retrieval.confidence_threshold: "),
        ("retrieval: {index_path: x, metric: l2}", "retrieval.metric: Input should be 'cosine'"),
        (
            "retrieval: {index_path: x, confidence_threshold: 0.3, open_set_threshold: 0.5}",
            "open_set_threshold (0.5) must not exceed confidence_threshold (0.3)",
        ),
        ("retrieval: {index_path: x}\nrerank: {prompt_template: hello}", "prompt_template"),
        ("retrieval: {index_path: x}\nlabels: []", "labels"),
        ("labels: [a]", "retrieval.index_path is required"),
        ("retrieval:", "retrieval.index_path is required"),
        ("", "must be a mapping"),
        ("- a", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("retrieval: {index_path: x}\nretrieval: {index_path: y}", "'retrieval' is given twice, line 2"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("pipeline: [{embedd: {encoder: {family: fake}}}]", "unknown step 'embedd'; did you mean 'embed'?"),
        ("pipeline: [{embed: {encoder: {family: fake}, sise: 1}}]", "embed.sise: unknown key"),
        ("pipeline: [{embed: {}, vote: {}}]", "each step is one `name: {options}`"),
        ("retrieval: {index_path: x, top_k: yes}", "retrieval.top_k: Input should be a valid integer"),
        ("retrieval: {index_path: x, confidence_threshold: on}", "retrieval.confidence_threshold: "),
        ("retrieval: {index_path: x}\nbatch_size: '8'", "batch_size: Input should be a valid integer"),
        (
            "retrieval: {index_path: x}\nallow_unknown: 'off'",
            "allow_unknown: Input should be a valid boolean",
        ),
        ("retrieval: {index_path: x}\nrerank: {enabled: 0}", "rerank.enabled: "),
        ("retrieval: {index_path: x}\nrerank: {device: gpu}", "rerank.device: "),
        (
            "retrieval: {index_path: x}\nencoder: {family: sigilp}",
            "unknown encoder 'sigilp'; did you mean 'siglip'?",
        ),
        (
            "retrieval: {index_path: x}\nrerank: {min_pixels: 20, max_pixels: 10}",
            "rerank: max_pixels 10 is less than min_pixels 20: raise it or lower that",
        ),
        (
            "retrieval: {index_path: x}\nrerank: {device: 'cuda:1', device_map: auto}",
            "rerank: device_map spreads a model over all GPUs, and device cuda:1 is one: leave one of ",
        ),
        (
            "retrieval: {index_path: x}\nrerank: {offload_folder: ./disk}",
            "rerank: offload_folder is for what device_map puts on disk: set device_map, or leave it out",
        ),
        (
            "retrieval: {index_path: x}\nrerank: {max_memory: {0: much}}",
            "rerank.max_memory: 'much' of 0 must be a size such as 20GiB, or a number of bytes",
        ),
        (
            "pipeline: [{rerank: {model: {family: qwen-vl, device_map: all}}}]",
            "rerank.model.device_map: ",
        ),
        (
            "pipeline: [{rerank: {model: {family: qwen-vl, max_pixels: 0}}}]",
            "rerank.model.max_pixels: ",
        ),
        (
            "retrieval: {index_path: x}\nrerank: {family: qwen}",
            "unknown chooser 'qwen'; did you mean 'qwen-vl'?",
        ),
        (
            "retrieval: {index_path: x, text_weight: 0.2}\nencoder: {family: descriptor}",
            "text_prior.encoder 'descriptor' takes no texts; use siglip or clip",
        ),
        (
            "pipeline: [{text_prior: {encoder: {family: dinov2}, index: x, weight: 0.2}}]",
            "text_prior.encoder 'dinov2' takes no texts; use siglip or clip",
        ),
        ("retrieval: {index_path: x, text_weight: 2}", "retrieval.text_weight: "),
        ("pipeline: [{text_prior: {weight: 0.2}}]", "text_prior.encoder: "),
        ("pipeline: []", "pipeline: "),
        ("pipeline: [{retrieve: 5}]", "the options of 'retrieve' must be a mapping, got 5"),
        ("pipeline: [{retrieve: {index: 5}}]", "retrieve.index: "),
        ("pipeline: [{vote: }]\nbatch_size: 0", "batch_size: "),
        ("pipeline: vote", "pipeline: "),
        ("pipeline: [{5: {}}]", "pipeline.0"),
        ("pipeline: [{vote: {}}]\nlabels: [a]", "'labels' has no place beside it"),
    ],
)
def test_bad_settings_get_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        PipelineConfig.from_yaml(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_wiring_is_checked_before_anything_is_opened(tmp_path: Path) -> None:
    config = PipelineConfig.from_yaml(written(tmp_path, "pipeline: [{vote: {}}]"))
    with pytest.raises(
        ConfigError, match="'vote' needs embeddings, neighbours, which no earlier step provides"
    ):
        config.build()


BOMB = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 20)}]\n" for i in range(12)
)
HOSTILE = {"a bomb": BOMB, "2 MB": "x: " + "y" * 2_000_000, "5,000 deep": "[" * 5_000}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        PipelineConfig.from_yaml(written(tmp_path, text))


@pytest.mark.timing
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_quickly(text: str, tmp_path: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(ConfigError):
        PipelineConfig.from_yaml(written(tmp_path, text))
    assert time.perf_counter() - started < 2


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    text = (
        "encoder: {family: siglip, weights: ../models/mine}\n"
        "retrieval: {index_path: ../indexes/a}\n"
        "rerank: {model_name: ./judge}\n"
    )
    path = written(tmp_path / "deep", text)
    monkeypatch.chdir(tmp_path)
    config = PipelineConfig.from_yaml("deep/settings.yaml")
    assert config.encoder.weights == str(tmp_path / "models/mine")
    assert config.retrieval is not None
    assert config.retrieval.index_path.resolve() == tmp_path / "indexes/a"
    assert config.rerank.model_name == str(tmp_path / "deep/judge")
    long = "pipeline:\n- retrieve: {index: ../indexes/a}\n- rerank: {model: {family: fake, weights: ../m}}\n"
    path.write_text(long)
    retrieve, rerank = PipelineConfig.from_yaml(path).steps()
    assert isinstance(retrieve, Retrieve)
    assert retrieve.index.resolve() == tmp_path / "indexes/a"
    assert isinstance(rerank, Rerank)
    assert rerank.model.weights == str(tmp_path / "m")


def test_the_model_of_a_reranker_takes_the_same_options_in_both_forms(tmp_path: Path) -> None:
    options = (
        "min_pixels: 3136, max_pixels: 400000, dtype: bfloat16, device: cpu, revision: v1, "
        "device_map: sequential, max_memory: {cpu: 30GiB, 0: 20GiB}, offload_folder: ../off"
    )
    short = f"retrieval: {{index_path: x}}\nrerank: {{family: qwen-vl, model_name: a/b, {options}}}\n"
    long = f"pipeline:\n- rerank: {{model: {{family: qwen-vl, weights: a/b, {options}}}}}\n"
    expected = ModelSpec(
        "qwen-vl",
        "a/b",
        "v1",
        "cpu",
        "bfloat16",
        min_pixels=3136,
        max_pixels=400_000,
        device_map="sequential",
        max_memory={0: "20GiB", "cpu": "30GiB"},
        offload_folder=tmp_path / "../off",
    )
    for text in (short, long):
        config = PipelineConfig.from_yaml(written(tmp_path, text))
        again = PipelineConfig.from_yaml(written(tmp_path, config.to_yaml()))
        for step in (config.steps()[-1], again.steps()[-1]):
            assert isinstance(step, Rerank)
            assert step.model == expected


def test_hub_ids_and_shipped_names_are_left_alone(tmp_path: Path) -> None:
    for weights in ("google/siglip-so400m-patch14-384", "shipped:siglip-digits", "/abs/folder"):
        text = f"encoder: {{family: siglip, weights: '{weights}'}}\nretrieval: {{index_path: x}}"
        assert PipelineConfig.from_yaml(written(tmp_path, text)).encoder.weights == weights


@pytest.mark.parametrize("name", ["default.yaml", "demo.yaml"])
def test_shipped_settings_round_trip(name: str, tmp_path: Path) -> None:
    config = PipelineConfig.from_yaml(ROOT / "config" / name)
    config.to_yaml(tmp_path / "copy.yaml")
    again = PipelineConfig.from_yaml(tmp_path / "copy.yaml")
    assert again.build() == config.build()


def test_long_form_round_trips(tmp_path: Path) -> None:
    steps = (
        "- embed: {encoder: {family: fake}}\n- retrieve: {index: a, k: 3, labels: [x, y]}\n- vote: {}\n"
        "- text_prior: {weight: 0.2, templates: ['a {}', '{}']}\n"
    )
    long = f"batch_size: 3\npipeline:\n{steps}"
    config = PipelineConfig.from_yaml(written(tmp_path, long))
    config.to_yaml(tmp_path / "copy.yaml")
    assert PipelineConfig.from_yaml(tmp_path / "copy.yaml").build() == config.build()


def test_both_spellings_make_the_same_pipeline(tmp_path: Path) -> None:
    short = """
labels: [a, b]
allow_unknown: false
encoder: {family: fake}
retrieval:
  {index_path: idx, top_k: 7, text_weight: 0.3, confidence_threshold: 0.7, open_set_threshold: 0.4}
rerank: {family: fake, model_name: b, min_delta: 0.1, max_batch_size: 4, max_candidates: 3}
"""
    long = """
pipeline:
- embed: {encoder: {family: fake}}
- retrieve: {index: idx, k: 7, labels: [a, b]}
- vote: {}
- text_prior: {weight: 0.3}
- open_set:
    {confidence_threshold: 0.7, open_set_threshold: 0.4, min_delta: 0.1,
     allow_unknown: false, calibration: idx}
- rerank: {model: {family: fake, weights: b}, max_batch_size: 4, max_candidates: 3, allow_unknown: false}
"""
    (tmp_path / "long.yaml").write_text(long)
    assert (
        PipelineConfig.from_yaml(written(tmp_path, short)).build()
        == PipelineConfig.from_yaml(tmp_path / "long.yaml").build()
    )


def test_documented_defaults() -> None:
    # What holds when a key is left out.
    steps = {step.name: step for step in PipelineConfig(retrieval={"index_path": "x"}).steps()}
    assert "text_prior" not in steps
    retrieve, open_set, rerank = steps["retrieve"], steps["open_set"], steps["rerank"]
    assert isinstance(retrieve, Retrieve)
    assert isinstance(rerank, Rerank)
    assert (retrieve.k, rerank.max_batch_size) == (10, 8)
    assert (rerank.model.family, rerank.model.weights) == ("qwen-vl", "Qwen/Qwen2-VL-7B-Instruct")
    bare = OpenSet().policy()
    assert isinstance(bare, Thresholds)
    assert (bare.confidence, bare.open_set, bare.min_delta, bare.source) == (0.6, 0.35, 0.05, "default")
    assert isinstance(open_set, OpenSet)
    assert open_set.allow_unknown


@pytest.mark.parametrize("options", [{"open_set_threshold": 0.9}, {"confidence_threshold": 0.2}])
def test_one_threshold_may_not_contradict_the_default_of_the_other(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="one of them is a default: set both"):
        OpenSet(**options).policy()


def test_the_long_form_links_its_steps_as_the_short_form_does() -> None:
    long = PipelineConfig(
        pipeline=(
            {"retrieve": {"index": "idx"}},
            {"vote": {}},
            {"text_prior": {"encoder": {"family": "fake"}, "weight": 0.2, "labels": ["a"]}},
            {"open_set": {"allow_unknown": False}},
            {"rerank": {"model": {"family": "fake"}}},
        )
    )
    _, vote, text_prior, open_set, rerank = long.steps()
    assert text_prior == TextPrior(encoder=ModelSpec("fake"), index=Path("idx"), weight=0.2, labels=("a",))
    assert isinstance(open_set, OpenSet)
    assert isinstance(rerank, Rerank)
    assert (vote, open_set.calibration) == (Vote(calibration=Path("idx")), Path("idx"))
    assert not rerank.allow_unknown


class TestCacheDir:
    """One folder for the checkpoints of all models."""

    SHORT = (
        "cache_dir: kept\nretrieval: {index_path: x, text_weight: 0.2}\nencoder: {family: siglip}\n"
        "rerank: {model_name: a/b}\n"
    )
    LONG = (
        "cache_dir: kept\npipeline:\n- embed: {encoder: {family: siglip, cache_dir: ../mine}}\n"
        "- label: {model: {family: fake}}\n- segment: {}\n"
    )

    @staticmethod
    def caches(config: PipelineConfig) -> list[Path | None]:
        return [spec.cache_dir for step in config.steps() for spec in step.models()]

    def test_every_model_gets_the_one_cache_dir(self, tmp_path: Path) -> None:
        config = PipelineConfig.from_yaml(written(tmp_path, self.SHORT))
        assert self.caches(config) == [tmp_path / "kept"] * 3  # embed, text_prior, rerank
        assert self.caches(config.model_copy(update={"cache_dir": None})) == [None] * 3

    def test_a_model_with_a_cache_dir_of_its_own_keeps_it(self, tmp_path: Path) -> None:
        config = PipelineConfig.from_yaml(written(tmp_path, self.LONG))
        assert self.caches(config) == [tmp_path / "../mine", tmp_path / "kept", tmp_path / "kept"]

    @pytest.mark.parametrize("text", [SHORT, LONG])
    def test_a_cache_dir_is_written_as_it_was_read(self, tmp_path: Path, text: str) -> None:
        config = PipelineConfig.from_yaml(written(tmp_path, text))
        config.to_yaml(tmp_path / "again.yaml")
        again = PipelineConfig.from_yaml(tmp_path / "again.yaml")
        assert again.steps() == config.steps()
        assert again.cache_dir == tmp_path / "kept"

    def test_a_home_and_an_absolute_path_stay(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/somebody")
        text = self.SHORT.replace("kept", "~/models")
        config = PipelineConfig.from_yaml(written(tmp_path, text))
        assert self.caches(config)[0] == Path("/home/somebody/models")
        text = self.SHORT.replace("kept", "/srv/models")
        assert self.caches(PipelineConfig.from_yaml(written(tmp_path, text)))[0] == Path("/srv/models")


def test_options_of_the_step_rerank_are_options_of_its_settings() -> None:
    """Declared once, in the step: same names, same defaults, same ranges."""
    step = {field.name: field.default for field in fields(Rerank) if field.name not in FROM_OTHER_SETTINGS}
    assert len(step) == 14
    assert RerankSettings().options() == step
    for name, wrong in (("max_share", 0), ("permutations", 0), ("max_batch_size", 0), ("mode", "pairs")):
        with pytest.raises(ValidationError, match=name):
            RerankSettings(**{name: wrong})
        with pytest.raises(ConfigError, match=name):
            make_step("rerank", {"model": {"family": "fake"}, name: wrong})
