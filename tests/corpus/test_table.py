from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lmm_classifier.corpus.corpus import Corpus
from lmm_classifier.corpus.source import read_corpus
from lmm_classifier.corpus.table import read_table
from lmm_classifier.errors import CorpusError


def table(folder: Path, content: str | bytes, name: str = "corpus.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(corpus: Corpus) -> list[tuple[str, str]]:
    return [(item.path, item.label) for item in corpus.items]


TWO = [("b/1.jpg", "rose"), ("a/2.jpg", "lily")]


@pytest.mark.parametrize(
    "content",
    [
        "path,label\nb/1.jpg,rose\na/2.jpg,lily\n",
        "path,label\nb/1.jpg,rose\na/2.jpg,lily",
        "path,label\r\nb/1.jpg,rose\r\na/2.jpg,lily\r\n",
        "\ufeffpath,label\nb/1.jpg,rose\na/2.jpg,lily\n",
        " path , label \nb/1.jpg, rose \n\na/2.jpg,lily\n",
        'label,note,path\nrose,"x, y",b/1.jpg\nlily,"two\nlines",a/2.jpg\n',
        "path,label\n./b//1.jpg,rose\na/./2.jpg,lily\n",
    ],
)
def test_csv_rows_become_items_in_their_order(tmp_path: Path, content: str):
    corpus = read_table(table(tmp_path, content))
    assert rows(corpus) == TWO
    assert (corpus.root, corpus.skipped, corpus.warnings) == (tmp_path, (), ())


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_jsonl_objects_become_items_in_their_order(tmp_path: Path, mark: str):
    lines = [{"path": "b/1.jpg", "label": "rose", "width": 3}, {"label": " lily", "path": "a/2.jpg"}]
    content = mark + "\r\n\n".join(json.dumps(line) for line in lines)
    assert rows(read_table(table(tmp_path, content, "corpus.JSONL"))) == TWO


def test_odd_names_survive(tmp_path: Path):
    name = "\udcff line\u2028separator\n=1+1,.jpg"
    content = json.dumps({"path": name, "label": "rosé"}) + "\n"
    assert rows(read_table(table(tmp_path, content, "a.jsonl"))) == [(name, "rosé")]
    raw = '{"path": "a\u2028b.jpg", "label": "rosé"}'
    assert rows(read_table(table(tmp_path, raw, "b.jsonl"))) == [("a\u2028b.jpg", "rosé")]


def test_paths_may_be_absolute_or_missing(tmp_path: Path):
    corpus = read_table(table(tmp_path, "path,label\n/data/1.jpg,rose\n../x/2.jpg,lily\n"))
    assert [corpus.root / item.path for item in corpus.items] == [
        Path("/data/1.jpg"),
        tmp_path / "../x/2.jpg",
    ]


def test_a_repeated_row_is_kept_once_and_recorded(tmp_path: Path):
    corpus = read_table(table(tmp_path, "path,label\n1.jpg,rose\n2.jpg,lily\n./1.jpg,rose\n"))
    assert rows(corpus) == [("1.jpg", "rose"), ("2.jpg", "lily")]
    (entry,) = corpus.skipped
    assert (entry.path, entry.code, entry.reason) == ("1.jpg", "duplicate_row", "line 4 repeats line 2")


def test_one_label_is_worth_a_warning(tmp_path: Path):
    (line,) = read_table(table(tmp_path, "path,label\n1.jpg,rose\n")).warnings
    assert "only label is 'rose'" in line


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("a.csv", "file,class\n1.jpg,rose\n", 1, "header"),
        ("a.csv", "path;label\n1.jpg;rose\n", 1, "header"),
        ("a.csv", "path,label,path\n1.jpg,rose,2.jpg\n", 1, "header"),
        ("a.csv", "", 1, "header"),
        ("a.csv", "path,label\n1.jpg,rose\n2.jpg\n", 3, "1 cells under 2 columns"),
        ("a.csv", "path,label\n1.jpg,rose\na,b.jpg,lily\n", 3, "3 cells under 2 columns"),
        ("a.csv", "path,label\n1.jpg,\n", 2, "label is missing"),
        ("a.csv", "path,label\n1.jpg,  \n", 2, "label is missing"),
        ("a.csv", "path,label\n,rose\n", 2, "path is missing"),
        ("a.csv", 'path,label\n1.jpg,"rose\n', 2, "not valid CSV"),
        ("a.csv", b"path,label\n1.jpg,rose\n2.jpg,ros\xe9\n", 3, "UTF-8"),
        ("a.csv", "path,label\n1.jpg,rose\n2.jpg,lily\n1.jpg,lily\n", 4, "'rose' on line 2"),
        ("a.jsonl", '{"path": "1.jpg", "label": "rose"}\n{"path": \n', 2, "not valid JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", 1, "not valid JSON"),
        ("a.jsonl", '["1.jpg", "rose"]\n', 1, "not a JSON object"),
        ("a.jsonl", '\n{"path": "1.jpg"}\n', 2, "label is missing"),
        ("a.jsonl", '{"path": 3, "label": "rose"}\n', 1, "path is missing, empty or not a text"),
        ("a.jsonl", '{"path": "1.jpg", "label": null}\n', 1, "label is missing, empty or not a text"),
    ],
)
def test_a_wrong_row_is_one_clear_line(
    tmp_path: Path, name: str, content: str | bytes, line: int, problem: str
):
    path = table(tmp_path, content, name)
    with pytest.raises(CorpusError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(10)
def test_a_table_that_cannot_be_read_is_an_error(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for path, problem in {
        tmp_path / "pipe.csv": "not a file",
        tmp_path / "folder.csv": "not a file",
        tmp_path / "missing.csv": "No such file",
        table(tmp_path, "path,label\n", "bare.csv"): "no row",
        table(tmp_path, "\n", "bare.jsonl"): "no row",
        table(tmp_path, "path\tlabel\n", "a.tsv"): "ends with .csv or .jsonl",
    }.items():
        with pytest.raises(CorpusError, match=problem):
            read_table(path)


def test_read_corpus_takes_folders_and_tables(tmp_path: Path):
    (tmp_path / "rose").mkdir()
    (tmp_path / "rose/1.jpg").write_bytes(b"")
    assert rows(read_corpus(tmp_path)) == [("rose/1.jpg", "rose")]
    assert rows(read_corpus(table(tmp_path, "path,label\n2.jpg,lily\n"))) == [("2.jpg", "lily")]
    assert rows(read_corpus(str(table(tmp_path, '{"path": "3.jpg", "label": "lily"}', "a.jsonl")))) == [
        ("3.jpg", "lily")
    ]


def test_read_corpus_refuses_the_rest(tmp_path: Path):
    for path, problem in {
        tmp_path / "missing": "no such file or folder",
        tmp_path / "missing.csv": "no such file or folder",
        table(tmp_path, "", "corpus.parquet"): "neither a folder nor a table",
    }.items():
        with pytest.raises(CorpusError, match=problem) as caught:
            read_corpus(path)
        assert str(path) in str(caught.value)
