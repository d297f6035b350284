from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from served import Child, Served, child, classifier, encoded, make_index, serving
from synthetic import COLOURS, picture
from training_sets import of_colour, trained


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collections of the whole photo, of persons, and of faces."""
    folder = tmp_path_factory.mktemp("collections")
    persons, faces = "prominent_person", "prominent_face"
    trained(folder, of_colour("7", "red"), of_colour("8", "blue", persons), of_colour("9", "green", faces))
    return folder


@pytest.fixture(scope="session")
def service(index: Path, store: Path) -> Iterator[Served]:
    with serving(classifier(index, store=store)) as served:
        yield served


@pytest.fixture(scope="module")
def started(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Child]]:
    """The command itself, which does not wait long for slow clients; its models are open."""
    quick = {"headers_seconds": 1.0, "body_seconds": 1.5}
    with child(tmp_path_factory.mktemp("limits"), classifier(index, **quick)) as both:
        both[0].upload(encoded(picture(COLOURS["red"], seed=1)), "classify_hybrid", "embed_siglip")
        yield both
