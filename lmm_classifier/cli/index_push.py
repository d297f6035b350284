"""`index push`: putting an index where many machines search it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lmm_classifier.cli.output import progress
from lmm_classifier.text import printable


def push(
    index: Annotated[Path, typer.Argument(help="Index folder.")],
    milvus: Annotated[
        str, typer.Option(help="URI such as http://host:19530, or a local file ending in .db.")
    ],
    collection: Annotated[
        str | None,
        typer.Option(help="Name of the collection in Milvus; `lmm_` and the name of the folder if left out."),
    ] = None,
    encoder: Annotated[str, typer.Option(help="Which of the index's encoders, if it has several.")] = "",
    json_progress: Annotated[
        bool, typer.Option("--json-progress", help="Progress as JSON lines on standard error.")
    ] = False,
) -> int:
    """Put the vectors of an index into Milvus, to be searched with `retrieval.backend: milvus`.

    The index folder is still needed. After each change of the index, push again. A server's key or
    user:password is read from the environment variable MILVUS_TOKEN.
    """
    from lmm_classifier.index.milvus import Milvus, push_index, shown

    started = time.perf_counter()
    with progress(json_progress) as on_progress:
        name, count = push_index(index, Milvus(milvus, collection), encoder, on_progress)
    seconds = time.perf_counter() - started
    typer.echo(
        f"{printable(shown(milvus))}: {count} vectors of {printable(str(index))} as {name}, {seconds:.1f} s"
    )
    return 0
