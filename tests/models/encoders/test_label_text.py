"""Texts in the space of the photos: SigLIP's tower, and labels as vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    Siglip2Tokenizer,
    SiglipTokenizer,
    SiglipVisionModel,
)

import lmm_classifier
from lmm_classifier.api.build_index import build_index
from lmm_classifier.checkpoints.digits import KNOWN_NAMES, picture_of, scans_in
from lmm_classifier.checkpoints.train_siglip import TEMPLATES as TRAINED
from lmm_classifier.errors import ConfigError, ModelError
from lmm_classifier.models import loading
from lmm_classifier.models.base import TextEncoder
from lmm_classifier.models.encoders.label_text import (
    MAX_SENTENCES,
    TEMPLATES,
    kept_label_vectors,
    label_vectors,
)
from lmm_classifier.models.fake import FakeEncoder
from lmm_classifier.models.loading import load_text_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.steps.embed import Embed
from lmm_classifier.steps.retrieve import Retrieve
from lmm_classifier.steps.text_prior import TextPrior
from lmm_classifier.steps.vote import Vote
from lmm_classifier.types import FloatArray, Sample, required
from synthetic import COLOURS, picture, write_corpus

Copy = Callable[[Path], Path]
DIGITS = ModelSpec("siglip", "shipped:siglip-digits", dtype="float32")
TEXTS = ["a photo of a daisy", "rose", "", "a tulip and a rose and a daisy and a photo of a tulip", "Rose"]


def opened(folder: Path, **spec: Any) -> TextEncoder:
    loading.reset()
    return load_text_encoder(ModelSpec("siglip", str(folder), **{"dtype": "float32", **spec}))


def siglip_tokenizer(folder: Path) -> Any:
    """SigLIP's own class, over a vocabulary learned from a few words."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a daisy and a rose and a tulip"] * 20),
        model_prefix=str(folder / "spiece"),
        vocab_size=36,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)


def siglip2_tokenizer(folder: Path) -> Any:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    return Siglip2Tokenizer({token: i for i, token in enumerate(tokens)}, [], model_input_names=["input_ids"])


@pytest.fixture(params=["siglip", "siglip2"])
def folder(request: pytest.FixtureRequest, edited: Copy, tmp_path: Path) -> Path:
    """A checkpoint with the tokenizer of its kind."""
    path = edited(request.getfixturevalue(f"{request.param}_folder"))
    make = {"siglip": siglip_tokenizer, "siglip2": siglip2_tokenizer}[request.param]
    make(tmp_path).save_pretrained(path)
    return path


class TestSiglip:
    @torch.inference_mode()
    def test_gives_the_text_features_of_the_whole_model(self, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert type(tokenizer).__name__ in {"SiglipTokenizer", "Siglip2Tokenizer"}
        lower = [text.lower() for text in TEXTS]
        inputs = tokenizer(lower, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
        features = AutoModel.from_pretrained(folder).eval().get_text_features(**inputs).pooler_output
        expected = torch.nn.functional.normalize(features, dim=1).numpy()
        vectors = opened(folder).encode_text(TEXTS)
        assert vectors.dtype == np.float32
        assert (vectors * expected).sum(axis=1).min() >= 0.99999
        assert (expected @ expected.T)[np.triu_indices(4, 1)].min() < 0.95

    def test_does_not_depend_on_the_batch_or_on_capitals(self, folder: Path) -> None:
        encoder = opened(folder)
        alone = np.concatenate([encoder.encode_text([text]) for text in TEXTS])
        together = encoder.encode_text(TEXTS)
        np.testing.assert_allclose(together, alone, atol=2e-6)
        np.testing.assert_allclose(together[1], together[4], atol=2e-6)
        assert encoder.encode_text([]).shape == (0, 32)

    def test_in_bfloat16_stays_near(self, folder: Path) -> None:
        rough = opened(folder, dtype="bfloat16").encode_text(TEXTS)
        assert (opened(folder).encode_text(TEXTS) * rough).sum(axis=1).min() >= 0.98

    def test_opens_the_text_tower_once_and_late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        built = []
        tower = transformers.models.siglip.modeling_siglip.SiglipTextModel
        original = tower.__init__
        monkeypatch.setattr(tower, "__init__", lambda *a, **k: (built.append(1), original(*a, **k))[1])
        encoder = load_text_encoder(DIGITS)
        encoder.encode([Image.new("RGB", (8, 8))])
        assert built == []
        encoder.encode_text(["a"])
        encoder.encode_text(["b"])
        assert built == [1]

    def test_may_be_asked_by_several_threads(self) -> None:
        encoder = load_text_encoder(DIGITS)
        texts = [[f"a photo of {name}"] * (i + 1) for i, name in enumerate(KNOWN_NAMES)]
        expected = [encoder.encode_text(batch) for batch in texts]
        with ThreadPoolExecutor(8) as pool:
            for vectors, wanted in zip(pool.map(encoder.encode_text, texts * 5), expected * 5, strict=True):
                np.testing.assert_allclose(vectors, wanted, atol=2e-6)

    def test_without_a_text_tower(self, siglip_folder: Path, tmp_path: Path) -> None:
        SiglipVisionModel.from_pretrained(siglip_folder).save_pretrained(tmp_path)
        transformers.AutoImageProcessor.from_pretrained(siglip_folder).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="is a 'siglip_vision_model' checkpoint without a text tower"):
            opened(tmp_path).encode_text(["a"])

    def test_without_a_tokenizer(self, siglip_folder: Path) -> None:
        with pytest.raises(ModelError, match="cannot be opened as 'siglip'") as caught:
            opened(siglip_folder).encode_text(["a"])
        assert "\n" not in str(caught.value)


class TestZeroShot:
    @pytest.fixture
    def encoder(self) -> TextEncoder:
        return load_text_encoder(DIGITS)

    @pytest.mark.parametrize("templates", [TRAINED[-1:], TRAINED, TEMPLATES])
    def test_of_the_shipped_model(self, encoder: TextEncoder, templates: Sequence[str]) -> None:
        scans = [scan for scan in scans_in("calibration") if scan.known]
        images = encoder.encode([picture_of(scan.pixels).convert("RGB") for scan in scans])
        names = label_vectors(encoder, KNOWN_NAMES, templates)
        chosen = (images @ names.T).argmax(axis=1)
        right = [KNOWN_NAMES[i] == scan.name for i, scan in zip(chosen, scans, strict=True)]
        assert len(right) == 205
        assert np.mean(right) >= 0.93  # measured .976, .966 and .956

    @torch.inference_mode()
    def test_texts_are_those_of_transformers(self, encoder: TextEncoder) -> None:
        folder = Path(lmm_classifier.__file__).parent / "checkpoints/siglip-digits"
        inputs = AutoProcessor.from_pretrained(folder)(
            text=list(KNOWN_NAMES), padding="max_length", return_tensors="pt"
        )
        features = (
            AutoModel.from_pretrained(folder).get_text_features(input_ids=inputs["input_ids"]).pooler_output
        )
        expected = torch.nn.functional.normalize(features, dim=1).numpy()
        assert (encoder.encode_text(KNOWN_NAMES) * expected).sum(axis=1).min() >= 0.99999


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@torch.inference_mode()
def test_the_text_prior_gives_the_probabilities_of_the_whole_model(
    folder: Path, temperature: float, tmp_path: Path
) -> None:
    spec = ModelSpec("siglip", str(folder), dtype="float32")
    build_index(write_corpus(tmp_path / "corpus", per_label=1), tmp_path / "index", encoder=spec)
    # No label of the text has an image, and the weight is 1: the evidence is the probability.
    labels = ("daisy", "rose", "tulip")
    prior = TextPrior(
        encoder=spec,
        index=tmp_path / "index",
        weight=1.0,
        labels=labels,
        templates=("a photo of a {}",),
        temperature=temperature,
    )
    steps = (Embed(encoder=spec), Retrieve(index=tmp_path / "index"), Vote(), prior)
    photos = [picture(colour, seed=i, side=32) for i, colour in enumerate(COLOURS.values())]
    samples = Pipeline(steps).run(Sample.from_image(str(i), photo) for i, photo in enumerate(photos))
    scores = [required(sample.scores) for sample in samples]
    model = AutoModel.from_pretrained(folder).eval()
    model.logit_scale.fill_(np.log(1 / temperature))  # the bias is the same for all labels
    tokens = AutoTokenizer.from_pretrained(folder)(
        [f"a photo of a {label}" for label in labels],
        padding="max_length",
        truncation=True,
        max_length=16,
        return_tensors="pt",
    )
    pixels = AutoImageProcessor.from_pretrained(folder)(images=photos, return_tensors="pt")
    expected = model(**pixels, **tokens).logits_per_image.softmax(dim=1).numpy()
    found = [[dict(zip(s.labels, s.values[0], strict=True))[label] for label in labels] for s in scores]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert ((expected > 0.01) & (expected < 0.99)).any()  # no mere arg max


class Words:
    """Every text is a vector of its letters."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        self.seen += texts
        rows = np.asarray([[text.count(c) for c in "abcdefghij{}_ "] for text in texts], np.float32) + 0.1
        rows = rows.reshape(len(texts), 14)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class TestLabelVectors:
    def test_are_mean_directions(self) -> None:
        words: Any = Words()
        vectors = label_vectors(words, ["fig", "ace"], ["a {}", "the {}"])
        assert words.seen == ["a fig", "the fig", "a ace", "the ace"]
        assert (vectors.dtype, vectors.shape) == (np.float32, (2, 14))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        mean = words.encode_text(["a fig", "the fig"]).mean(axis=0)
        np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-6)

    def test_take_labels_literally_but_for_underscores(self) -> None:
        words: Any = Words()
        label_vectors(words, ["{} {0} {x}", "oxeye_daisy"], ["a {} {}."])
        assert words.seen == ["a {} {0} {x} {} {0} {x}.", "a oxeye daisy oxeye daisy."]

    def test_of_no_label_are_none(self) -> None:
        words: Any = Words()
        assert label_vectors(words, []).shape == (0, 14)

    @pytest.mark.parametrize("templates", [[], ["a photo"], ["a {}", "{label}"]])
    def test_need_a_place_for_the_label(self, templates: list[str]) -> None:
        words: Any = Words()
        with pytest.raises(ConfigError, match="needs a {} for the label"):
            label_vectors(words, ["a"], templates)

    def test_of_many_labels_are_those_of_few(self) -> None:
        words: Any = Words()
        labels = [f"{chr(97 + i % 10)}{i}" for i in range(MAX_SENTENCES)]
        together = label_vectors(words, labels, ["{}", "a {}"])
        assert len(words.seen) == 2 * MAX_SENTENCES
        alone = np.concatenate([label_vectors(words, [label], ["{}", "a {}"]) for label in labels])
        np.testing.assert_array_equal(together, alone)

    def test_are_computed_once_however_many_threads_ask(self, monkeypatch: pytest.MonkeyPatch) -> None:
        words: Any = Words()
        spec = ModelSpec("fake", "words")
        monkeypatch.setattr(FakeEncoder, "encode_text", lambda _, texts: words.encode_text(texts))
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: kept_label_vectors(spec, ("fig", "ace"), ("a {}",)), range(50)))
        assert words.seen == ["a fig", "a ace"]
        np.testing.assert_array_equal(found[0], label_vectors(words, ["fig", "ace"], ["a {}"]))
        assert all(vectors is found[0] for vectors in found)
        with pytest.raises(ValueError, match="read-only"):
            found[0][0] = 0
        kept_label_vectors(spec, ("fig", "ace"), ("the {}",))
        assert words.seen[-2:] == ["the fig", "the ace"]

    def test_defaults_have_one(self) -> None:
        assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_encoders_without_texts_say_so() -> None:
    with pytest.raises(ModelError, match="encoder 'descriptor' takes no texts; use siglip or clip"):
        load_text_encoder(ModelSpec("descriptor"))


def test_the_fakes_texts_are_the_colours_they_name() -> None:
    encoder = load_text_encoder(ModelSpec("fake"))
    texts = ["a photo of Red.", "red, no: blue", "a daisy", "required"]
    plain = [Image.new("RGB", (30, 20), colour) for colour in ("#ff0000", "#0000ff", "#808080", "#808080")]
    np.testing.assert_allclose(encoder.encode_text(texts), encoder.encode(plain), atol=1e-6)
