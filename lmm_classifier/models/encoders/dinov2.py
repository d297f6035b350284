"""DINOv2 as transformers runs it: with published weights, the centre 224 px of a photo of 256."""

from __future__ import annotations

from typing import ClassVar

from transformers import Dinov2Model, Dinov2WithRegistersModel

from lmm_classifier.models.encoders.tower import VisionTower
from lmm_classifier.models.runtime.default_checkpoints import default_weights


class DinoV2Encoder(VisionTower):
    """The class token after the last norm, L2-normalised."""

    family: ClassVar = "dinov2"
    title: ClassVar = "DINOv2"
    default_weights: ClassVar = default_weights("dinov2")
    towers: ClassVar = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}
