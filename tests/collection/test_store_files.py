"""The files behind a store at run time: which is read, and when it is read again."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lmm_classifier import CollectionClassifier, PipelineConfig
from lmm_classifier.collection.step import Classify
from lmm_classifier.collection.train import TrainOptions
from lmm_classifier.errors import (
    ClassifierFileError,
    ConfigError,
)
from lmm_classifier.models.spec import ModelSpec
from synthetic import COLOURS, picture
from training_sets import FAKE, of_colour, trained

DESCRIPTOR = ModelSpec("descriptor")
RED, BLUE = picture(COLOURS["red"], seed=1000), picture(COLOURS["blue"], seed=1001)


class TestFiles:
    def test_the_named_file_is_read_and_no_other(self, tmp_path: Path) -> None:
        [first], [second] = (trained(tmp_path, of_colour("7")) for _ in range(2))
        (tmp_path / second.best.model_file).unlink()
        assert (tmp_path / first.best.model_file).exists()
        with pytest.raises(ClassifierFileError, match=second.best.model_file):
            CollectionClassifier(tmp_path).classify(RED, [7])

    def test_a_retrained_classifier_is_used_without_a_restart(self, tmp_path: Path) -> None:
        trained(tmp_path, of_colour("7"), of_colour("8", "green"))
        classifier = CollectionClassifier(tmp_path)
        assert [a.is_in_collection for a in classifier.classify(RED)] == [True, False]
        trained(tmp_path, of_colour("7", "blue"), of_colour("9"), options=TrainOptions(keep=1))
        assert [(a.collection, a.is_in_collection) for a in classifier.classify(RED)] == [
            ("7", False), ("8", False), ("9", True),
        ]  # fmt: skip
        assert classifier.collections() == ("7", "8", "9")

    def test_threads_get_right_answers_while_it_is_retrained(self, tmp_path: Path) -> None:
        trained(tmp_path, of_colour("7"))
        classifier, wrong, stop = CollectionClassifier(tmp_path), [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                wrong.extend(a for a in classifier.classify(RED) if a.is_in_collection is not True)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            trained(tmp_path, of_colour("7"), options=TrainOptions(keep=1))
        stop.set()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_the_store_may_be_a_link_and_is_where_it_was_when_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trained(tmp_path / "real", of_colour("7"))
        (tmp_path / "trained_classifiers").symlink_to(tmp_path / "real", target_is_directory=True)
        monkeypatch.chdir(tmp_path)
        classifier = CollectionClassifier()
        os.chdir("/")
        assert classifier.classify(RED)[0].is_in_collection

    def test_settings_can_name_the_step_with_all_its_options(self, tmp_path: Path) -> None:
        trained(tmp_path / "store", of_colour("7"))
        text = "pipeline:\n- classify: {store: store, collections: [7], encoders: {fake: {family: fake}}}\n"
        (tmp_path / "s.yaml").write_text(text)
        config = PipelineConfig.from_yaml(tmp_path / "s.yaml")
        [step] = config.steps()
        assert step == Classify(store=tmp_path / "store", collections=("7",), encoders=(("fake", FAKE),))
        RED.save(tmp_path / "red.png")
        [sample] = config.build().run_files([tmp_path / "red.png"])
        assert sample.memberships[0].is_in_collection
        (tmp_path / "again.yaml").write_text(config.to_yaml())
        assert PipelineConfig.from_yaml(tmp_path / "again.yaml").steps() == (step,)
        assert (
            Classify(store=tmp_path, encoders={"x": ModelSpec("onnx", "./a")}).models()[-1].weights == "./a"
        )

    def test_options_are_checked(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="unknown key; did you mean 'target'"):
            CollectionClassifier(tmp_path, targets="whole_image")
        with pytest.raises(ConfigError, match="unknown encoder 'fak'"):
            CollectionClassifier(tmp_path, encoders={"x": ModelSpec("fak")})
