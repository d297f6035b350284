"""An index in Milvus: vectors pushed there, candidates found there, similarities computed here.

The index folder stays the truth: it has the records and the vectors, and its manifest's digest names the
state that was pushed. What Milvus holds is a collection per state, NAME_DIGEST, and an alias NAME that points
at the state in force, so that a push is either wholly there or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmm_classifier.errors import ConfigError, IndexFolderError
from lmm_classifier.index.engine import LOOKED_UP, Found, Search, rescored, stacked
from lmm_classifier.index.manifest import Manifest, read_manifest
from lmm_classifier.index.search import VectorIndex, open_index, the_encoder
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.optional import extra
from lmm_classifier.storage.atomic_files import is_single_file
from lmm_classifier.storage.progress import OnProgress, Progress, ignore_progress
from lmm_classifier.types import FloatArray

_TOKEN = "MILVUS_TOKEN"  # noqa: S105 -- the name of the variable that holds it
_CONNECT_S = 10.0
_SEARCH_S = 60.0
_BATCH_BYTES = 16 << 20
"""Per insertion: gRPC refuses messages of 256 MiB."""
_MARGIN = 64
"""Candidates beyond k: Milvus rounds otherwise than we do, so the last of equals may be others there."""
_MOST = 16_384
"""Candidates that a Milvus server gives at most."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_MANIFEST_KEY, _ENCODER_KEY = "lmm.manifest", "lmm.fingerprint"


@dataclass(frozen=True, slots=True)
class Milvus:
    """Where an index is searched: a `Backend` for `open_index`.

    Attributes:
        uri: "http://host:19530", or a local path ending in .db for Milvus Lite. The environment variable
            MILVUS_TOKEN holds what a server asks for, "user:password" or a key.
        collection: name of the pushed index; that of the index folder if left out.
    """

    uri: str
    collection: str | None = None

    def open(self, folder: Path, manifest: Manifest, number: int, vectors: Vectors) -> Search:
        """The search of one space of an index folder.

        Raises:
            ConfigError: pymilvus is not installed, or the collection's name is none.
            IndexFolderError: Milvus does not answer, or has not this state of the index.
        """
        alias = self.alias(folder)
        again = f"push again: `index push {folder} --milvus {shown(self.uri)}`"
        client = connected(self.uri)
        with _explained(self.uri):
            found = _target(client, alias)
            if found is None:
                raise IndexFolderError(f"Milvus at {shown(self.uri)} has no index {alias}; {again}")
            held = _properties(client, found)
            if held.get(_MANIFEST_KEY) != manifest.digest:
                raise IndexFolderError(f"{alias} in Milvus holds another state than {folder}; {again}")
            if held.get(_ENCODER_KEY) != manifest.encoders[number].fingerprint:
                name = manifest.encoders[number].name
                raise IndexFolderError(
                    f"{alias} in Milvus holds no vectors of {name}; {again} --encoder {name}"
                )
            client.load_collection(found)
        return MilvusSearch(client, self.uri, found, vectors)

    def alias(self, folder: Path) -> str:
        """The name of the pushed index.

        Raises:
            ConfigError: Milvus takes no such name.
        """
        if self.collection is None:
            return f"lmm_{re.sub('[^A-Za-z0-9_]', '_', folder.absolute().name)}"[:200]
        if not _NAME.fullmatch(self.collection):
            raise ConfigError(
                f"{self.collection!r} is no name for a collection: at most 200 letters, digits and _, "
                "no digit first"
            )
        return self.collection


class MilvusSearch:
    """Milvus proposes candidates; their similarities are computed from the vectors themselves."""

    def __init__(
        self, client: Any, uri: str, collection: str, vectors: Vectors, codes: Sequence[int] | None = None
    ) -> None:
        self._client = client
        self._uri = uri
        self._collection = collection
        self._vectors = vectors
        self._filter = "" if codes is None else f"code in {sorted(codes)}"

    def among(self, codes: Sequence[int]) -> Search:
        """The search among the vectors whose labels have these codes; Milvus filters."""
        return MilvusSearch(self._client, self._uri, self._collection, self._vectors, codes)

    def search(self, queries: FloatArray, k: int) -> Found:
        """As `Search.search`.

        Raises:
            IndexFolderError: Milvus does not answer, or the index has been pushed anew since.
        """
        starts = range(0, len(queries), LOOKED_UP)
        return stacked([self._search(queries[i : i + LOOKED_UP], k) for i in starts], k)

    def _search(self, queries: FloatArray, k: int) -> Found:
        with _explained(self._uri):
            hits = self._client.search(
                self._collection,
                data=list(queries),
                anns_field="vector",
                limit=min(_MOST, k + _MARGIN),
                output_fields=["row"],  # none means all of them
                filter=self._filter,
                search_params={"metric_type": "IP"},
                timeout=_SEARCH_S,
            )
        width = max([k, *(len(found) for found in hits)])
        candidates = np.full((len(queries), width), -1, np.int64)
        for place, found in enumerate(hits):
            candidates[place, : len(found)] = np.sort(np.asarray([hit["row"] for hit in found], np.int64))
        return rescored(self._vectors, queries, candidates, k)


def push_index(
    folder: Path, where: Milvus, encoder: str = "", on_progress: OnProgress = ignore_progress
) -> tuple[str, int]:
    """Put the vectors of one encoder of an index folder into Milvus, in the place of an earlier push.

    Args:
        folder: the index folder; it stays where it is and is needed to search.
        where: server and name.
        encoder: family of the encoder; may be left out where there is only one.
        on_progress: called after each batch.

    Returns:
        name of the index in Milvus, and number of vectors. Nothing is sent if this state is there already.

    Raises:
        ConfigError: no such encoder, several and none is named, pymilvus is not installed, or a wrong name.
        IndexFolderError: the index is damaged, Milvus refuses, or the name belongs to another program.
    """
    if is_single_file(folder):
        raise IndexFolderError(f"{folder} is a single file; `index import` makes a folder of it")
    alias = where.alias(folder)
    client = connected(where.uri)
    index = open_index(folder, the_encoder(folder, encoder))
    digest = read_manifest(folder).digest
    properties = {_MANIFEST_KEY: digest, _ENCODER_KEY: index.encoder.fingerprint}
    name = f"{alias}_{digest[:16]}_{index.encoder.fingerprint[:8]}"
    with _explained(where.uri):
        former = _target(client, alias)
        if former is None and client.has_collection(alias):
            raise _foreign(alias, where)
        for collection in (name, former or name):
            if client.has_collection(collection) and _MANIFEST_KEY not in _properties(client, collection):
                raise _foreign(collection, where)
        if former != name:
            if client.has_collection(name):  # left by a push that was interrupted
                client.drop_collection(name)
            _create(client, name, index.encoder.dim, properties)
            _fill(client, name, index, on_progress)
            (client.alter_alias if former else client.create_alias)(name, alias)
            if former:
                client.drop_collection(former)
    return alias, len(index)


def _create(client: Any, name: str, dim: int, properties: dict[str, str]) -> None:
    with extra("pymilvus", "milvus"):
        from pymilvus import DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("code", DataType.INT64)
    for text in ("label", "path"):  # as JSON, for Milvus takes no names that are not UTF-8
        schema.add_field(text, DataType.VARCHAR, max_length=65_535)
    schema.add_field("sha256", DataType.VARCHAR, max_length=64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    structure = client.prepare_index_params()
    structure.add_index("vector", index_type="FLAT", metric_type="IP")
    client.create_collection(
        name, schema=schema, index_params=structure, consistency_level="Strong", properties=properties
    )


def _fill(client: Any, name: str, index: VectorIndex, on_progress: OnProgress) -> None:
    step = max(1, _BATCH_BYTES // (4 * index.encoder.dim + 1024))
    digests = index.records.sha256()
    for start in range(0, len(index), step):
        rows = np.arange(start, min(start + step, len(index)))
        batch = zip(rows.tolist(), index.records.paths(rows), index.vectors.take(rows), strict=True)
        client.insert(name, [_entity(index, row, path, digests[row], vector) for row, path, vector in batch])
        on_progress(Progress("pushing", int(rows[-1]) + 1, len(index)))
    client.flush(name)
    client.load_collection(name)
    count = client.query(name, filter="", output_fields=["count(*)"])[0]["count(*)"]
    if count != len(index):
        raise IndexFolderError(f"Milvus kept {count} of {len(index)} vectors in {name}; push again")


def _entity(index: VectorIndex, row: int, path: str, sha256: str, vector: FloatArray) -> dict[str, Any]:
    code = int(index.records.codes[row])
    names = {"label": json.dumps(index.labels[code]), "path": json.dumps(path)}
    return {"row": row, "code": code, "sha256": sha256, "vector": vector, **names}


def _target(client: Any, alias: str) -> str | None:
    """The collection that an alias points at; None where there is no such alias."""
    if alias not in client.list_aliases().get("aliases", []):
        return None
    return str(client.describe_alias(alias)["collection_name"])


def _properties(client: Any, collection: str) -> dict[str, str]:
    return dict(client.describe_collection(collection).get("properties") or {})


def _foreign(name: str, where: Milvus) -> IndexFolderError:
    return IndexFolderError(
        f"{name} in Milvus at {shown(where.uri)} is not an index of this program; choose another --collection"
    )


_clients: dict[str, Any] = {}
_lock = threading.Lock()


def connected(uri: str) -> Any:
    """The one client of this URI in the process, thread-safe, connected on first use.

    Raises:
        ConfigError: pymilvus is not installed.
        IndexFolderError: nothing answers there.
    """
    with extra("pymilvus", "milvus"):
        from pymilvus import MilvusClient
    for name in ("pymilvus", "milvus_lite"):  # every error is raised too, and said in our words
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _lock, _explained(uri):
        if uri not in _clients:
            _clients[uri] = MilvusClient(uri=uri, token=os.environ.get(_TOKEN, ""), timeout=_CONNECT_S)
        return _clients[uri]


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Say in one line what Milvus refused."""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        said = error.message if isinstance(error, MilvusException) else error
        raise IndexFolderError(
            f"Milvus at {shown(uri)} failed: {str(said).strip() or type(error).__name__}; is it running, and "
            "is the index pushed?"
        ) from error


def shown(uri: str) -> str:
    """A URI without the password it may hold."""
    return re.sub("//[^/@]*@", "//", uri)
