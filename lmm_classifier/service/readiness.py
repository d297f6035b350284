"""Which models are open, and opening them before the first request."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping

from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.errors import LmmClassifierError
from lmm_classifier.models.loading import is_open, set_memory_budget
from lmm_classifier.models.spec import DEVICE, REQUIRE_GPU
from lmm_classifier.service.errors import HttpError
from lmm_classifier.service.operations import Operation
from lmm_classifier.service.schemas import OperationEntry

log = logging.getLogger(__name__)


class Readiness:
    """What of the service is open.

    Raises:
        ConfigError: the environment asks for a device that is not here.
    """

    def __init__(self, classifier: HybridClassifier, offered: Mapping[str, Operation]) -> None:
        self._classifier, self._offered = classifier, offered
        self._warm = threading.Event()
        self.device()
        set_memory_budget(classifier.config.service.memory_budget)

    def device(self) -> str | None:
        """Where models run whose settings leave it open; None until torch is there. May wait for it.

        Raises:
            ConfigError: as for the class.
        """
        if "torch" not in sys.modules and not {DEVICE, REQUIRE_GPU} & os.environ.keys():
            return None
        # Only here: torch takes seconds, and not all models need it.
        from lmm_classifier.models.runtime.device import check_device

        return check_device()

    def begin(self) -> None:
        """Open, in a thread, what is to be open at the start."""
        threading.Thread(target=self._open, name="warm-up", daemon=True).start()

    def check(self) -> None:
        """Whether that is done.

        Raises:
            Refusal: not yet.
        """
        if not self._warm.is_set():
            raise HttpError(503, "not_ready", "models are being opened", {"retry-after": "2"})

    def entry(self, operation: Operation) -> OperationEntry:
        """An operation as it is listed."""
        return OperationEntry(
            description=operation.description,
            allowed_targets=list(operation.targets),
            default_target=operation.targets[0],
            parameters=dict(operation.schema),
            loaded=all(map(is_open, operation.models())) if operation.line_as_is else None,
        )

    def _open(self) -> None:
        started = time.monotonic()
        steps = dict.fromkeys(self._classifier.pipeline.steps)
        if self._classifier.config.service.warm_up:
            for operation in self._offered.values():
                steps |= dict.fromkeys(operation.line_as_is)
        for step in steps:
            try:
                step.load()
            except LmmClassifierError as error:  # it will say so to whoever asks for it
                log.warning("%s is not warm: %s", step.name, error)
            except Exception:  # a thread's edge: one that breaks must not leave the service unready for ever
                log.exception("%s is not warm", step.name)
        self._warm.set()
        log.info("warm after %.1f s", time.monotonic() - started)
