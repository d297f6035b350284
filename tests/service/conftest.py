from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from served import Served, classifier, make_index, serving
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
