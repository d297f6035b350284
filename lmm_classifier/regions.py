"""Where in a photo a task looks, as the steps that find the place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lmm_classifier.errors import ConfigError
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Step
from lmm_classifier.steps.detect import Detect
from lmm_classifier.steps.focus import CropPolicy, Focus, OnMissing, Padding, Prominence
from lmm_classifier.yaml_settings import explain

TargetName = Literal["whole_image", "prominent_person", "prominent_face"]
_FaceContext = Literal["prominent_person", "whole_image"]
PERSONS, FACES = ModelSpec("faster-rcnn"), ModelSpec("mtcnn")


@dataclass(frozen=True, config={"extra": "forbid"})
class RegionSelector:
    """The part of a photo that a task is about.

    Attributes:
        target: the whole image, or the most prominent person or face.
        face_context: where a face is looked for: inside the most prominent person, or everywhere.
        prominence, padding, crop_policy: as `Focus` has them.
        on_missing: what if there is none; left out, a person falls back to the whole image, which the
            result then says, and a face skips the task.
        persons, faces: the detectors.
    """

    target: TargetName = "whole_image"
    face_context: _FaceContext = "prominent_person"
    prominence: Prominence = "score"
    padding: Padding = 0.0
    crop_policy: CropPolicy = "pad"
    on_missing: OnMissing | None = None
    persons: ModelSpec = PERSONS
    faces: ModelSpec = FACES

    def steps(self) -> tuple[Step, ...]:
        """The steps that find the place; none for the whole image."""
        if self.target == "whole_image":
            return ()
        person = Detect(self.persons, labels=("person",))
        if self.target == "prominent_person":
            return (person, self._focus("person", self.on_missing or "fallback"))
        face = (Detect(self.faces, labels=("face",)), self._focus("face", self.on_missing or "skip"))
        if self.face_context == "whole_image":
            return face
        # Without a person there is no face of a person: the whole image is never searched in secret.
        context = Focus("person", self.prominence, on_missing=self.on_missing or "skip")
        return (person, context, *face)

    def _focus(self, kind: str, on_missing: OnMissing) -> Focus:
        return Focus(kind, self.prominence, self.padding, self.crop_policy, on_missing)


def make_region_selector(options: Mapping[str, Any]) -> RegionSelector:
    """A place, with options as they are written in YAML.

    Raises:
        ConfigError: an unknown option, or one out of range.
    """
    try:
        return TypeAdapter(RegionSelector).validate_python(options)
    except ValidationError as error:
        raise ConfigError(explain(error, RegionSelector)) from error
