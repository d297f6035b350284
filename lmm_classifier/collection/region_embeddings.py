"""The regions that collections are about, found and encoded: each region and encoder once per photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic.dataclasses import dataclass

from lmm_classifier.errors import ConfigError
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Step, run_shared
from lmm_classifier.regions import RegionSelector, TargetName
from lmm_classifier.steps.embed import Embed
from lmm_classifier.types import FloatArray, Sample, read_only

_Wanted = Mapping[TargetName, Sequence[ModelSpec]]
KINDS: Mapping[TargetName, str] = {"prominent_person": "person", "prominent_face": "face"}
"""What `focus` calls the regions that collections are about."""


@dataclass(frozen=True, config={"extra": "forbid"})
class EmbedMissing(Embed):
    """As `embed`, for samples that have no vector of this encoder yet."""

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        key = load_encoder(self.encoder).contract.fingerprint
        encoded = iter(super().run([sample for sample in batch if key not in sample.embeddings]))
        return [sample if key in sample.embeddings else next(encoded) for sample in batch]


def looked_at(
    batch: Sequence[Sample], wanted: _Wanted, persons: ModelSpec, faces: ModelSpec
) -> dict[TargetName, list[Sample]]:
    """Look at each region of each photo.

    Args:
        batch: samples as they come; where `focus` has chosen a region, it is that one or an error.
        wanted: region -> encoders.
        persons: detector of persons.
        faces: detector of faces.

    Returns:
        region -> a sample per photo, with target and embeddings float32 (1, d), or skipped.

    Raises:
        ConfigError: `focus` has chosen another region than one that is wanted.
    """
    found: dict[TargetName, list[Sample]] = {region: list(batch) for region in wanted}
    free = [row for row, sample in enumerate(batch) if sample.target is None]
    chosen = [row for row, sample in enumerate(batch) if sample.target is not None]
    _check([batch[row] for row in chosen], wanted)

    def look(
        rows: Sequence[int], starts: Sequence[Sample], lines: Mapping[TargetName, tuple[Step, ...]]
    ) -> None:
        for region, finished in zip(lines, run_shared(starts, list(lines.values())), strict=True):
            for row, sample in zip(rows, finished, strict=True):
                found[region][row] = sample

    encoding = {region: tuple(map(EmbedMissing, specs)) for region, specs in wanted.items()}
    sought = {
        region: (*RegionSelector(region, persons=persons, faces=faces).steps(), *steps)
        for region, steps in encoding.items()
        if region in KINDS
    }
    whole = {region: steps for region, steps in encoding.items() if region not in KINDS}
    look(free, [_afresh(batch[row], _first_rows(batch[row])) for row in free], whole)
    look(free, [_afresh(batch[row], {}) for row in free], sought)  # together: they share detectors
    look(chosen, [_of_target(batch[row]) for row in chosen], encoding)
    return found


def _check(chosen: Sequence[Sample], wanted: _Wanted) -> None:
    for sample in chosen:
        for region in wanted:
            if sample.target is not None and KINDS.get(region) != sample.target.wanted:
                raise ConfigError(
                    f"a collection is about {region}, but `focus` has chosen a {sample.target.wanted}; leave "
                    "`focus` out: each collection finds its region itself"
                )


def _afresh(sample: Sample, embeddings: Mapping[str, FloatArray]) -> Sample:
    """The photo as it came in, whatever other steps have found in it."""
    start = Sample.from_image(sample.sample_id, sample.image)
    return replace(start, embeddings=read_only(embeddings))


def _first_rows(sample: Sample) -> dict[str, FloatArray]:
    """The vectors of the whole image: row 0 where no region was chosen."""
    return {key: rows[:1] for key, rows in sample.embeddings.items()}


def _of_target(sample: Sample) -> Sample:
    """The sample with those of its vectors that are of its target: more rows were made before it."""
    kept = {
        key: rows for key, rows in sample.embeddings.items() if len(rows) == 1 and len(sample.regions) > 1
    }
    return replace(sample, embeddings=read_only(kept))
