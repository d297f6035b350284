from __future__ import annotations

import hashlib
import json
import re
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from html_page import HOSTILE, Tags, parsed
from lmm_classifier.audit.audit import Audit, audit_index
from lmm_classifier.audit.page import PER_KIND, write_audit
from lmm_classifier.errors import ConfigError
from lmm_classifier.index.engine import ApproximateSearch, tuned
from lmm_classifier.index.nearest_others import near_threshold, nearest_others
from lmm_classifier.index.records import Record, Records
from lmm_classifier.index.search import VectorIndex
from lmm_classifier.index.vectors import Vectors
from lmm_classifier.types import EncoderContract
from shell import run
from synthetic import COLOURS, picture, write_corpus


def index_of(vectors: np.ndarray, labels: list[str], contents: list[str], factory: str = "") -> VectorIndex:
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    stored = Vectors([unit], unit.shape[1])
    records = Records.of(
        Record(f"{label}/{row}.png", label, hashlib.sha256(content.encode()).hexdigest())
        for row, (label, content) in enumerate(zip(labels, contents, strict=True))
    )
    search = None
    if factory:
        engine, point = tuned(stored, records.codes, factory)
        search = ApproximateSearch(engine, stored, point.refine)
    contract = EncoderContract("planted", "", "", "", "", unit.shape[1], "float32")
    return VectorIndex(contract, records, stored, "planted", search)


def angles(*degrees: float) -> np.ndarray:
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def random_index(n: int = 300, copies: int = 40, factory: str = "") -> VectorIndex:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(n, 16))
    contents = list(range(n))
    for row in range(copies):
        vectors[n - 1 - row], contents[n - 1 - row] = vectors[row // 4], row // 4
    labels = [f"l{number}" for number in generator.integers(0, 5, n)]
    return index_of(vectors, labels, list(map(str, contents)), factory)


def rows_of(images: tuple[Record, ...]) -> list[int]:
    return [int(Path(image.path).stem) for image in images]


class TestFindings:
    def test_by_hand(self) -> None:
        """a and b lie 90 degrees apart; 4 is a copy of 0, 9 one of 5 under a, 10 nearly 6, 11 lies with b."""
        vectors = angles(0, 3, 6, 9, 0, 90, 93, 96, 99, 90, 93.1, 102)
        labels = ["a"] * 5 + ["b"] * 4 + ["a"] * 3
        audit = audit_index(index_of(vectors, labels, list("0123056785xy")), k=3)
        assert [rows_of(group.images) for group in audit.duplicates] == [[0, 4]]
        assert [(rows_of(g.images), g.proposed) for g in audit.conflicts] == [([5, 9], "b")]
        [pair] = audit.near_duplicates
        assert (rows_of(pair.images), pair.proposed) == ([6, 10], "b")
        assert pair.similarity == pytest.approx(np.cos(np.radians(0.1)), abs=1e-6)
        found = {int(Path(d.image.path).stem): d.proposed for d in audit.disagreements}
        assert {9: "b", 10: "b", 11: "b"}.items() <= found.items()
        assert set(found).isdisjoint({0, 1, 2, 3, 4})
        assert (audit.images, audit.labels, audit.crowded, audit.suspicious) == (12, 2, 0, True)

    def test_the_share_of_a_vote_is_that_of_the_softmax(self) -> None:
        audit = audit_index(index_of(angles(0, 10, -20, 90), ["a", "b", "a", "a"], list("wxyz")), k=2)
        [finding] = [d for d in audit.disagreements if d.image.path == "a/0.png"]
        near = np.cos(np.radians([10, 20]))
        weight = np.exp(near / 0.07) * near
        assert (finding.share, finding.proposed) == (pytest.approx(weight[1] / weight.sum(), abs=1e-5), "b")
        assert finding.proposed_share == pytest.approx(weight[0] / weight.sum(), abs=1e-5)
        assert [(n.path, n.label) for n in finding.neighbours] == [("b/1.png", "b"), ("a/2.png", "a")]

    def test_a_sound_corpus_has_none(self) -> None:
        audit = audit_index(index_of(angles(0, 3, 6, 90, 93, 96), list("aaabbb"), list("012345")), k=2)
        assert not audit.suspicious

    def test_three_copies_are_one_group_and_no_pair(self) -> None:
        audit = audit_index(index_of(angles(0, 0, 0, 50, 60), list("abaab"), list("00012")), k=2, near=0.999)
        assert [rows_of(group.images) for group in audit.conflicts] == [[0, 1, 2]]
        assert audit.duplicates == ()
        assert audit.near_duplicates == ()

    def test_copies_of_a_near_duplicate_neither_repeat_it_nor_vote_on_it(self) -> None:
        vectors = angles(0, 0.1, 0.1, 0.1, 0.1, 0.1, 20, 25, 30)
        audit = audit_index(index_of(vectors, list("abbbbbaaa"), list("xyyyyyuvw")), k=5, near=0.999)
        assert [(rows_of(p.images), p.proposed) for p in audit.near_duplicates] == [([0, 1], "a")]
        assert [rows_of(group.images) for group in audit.duplicates] == [[1, 2, 3, 4, 5]]

    @pytest.mark.parametrize("labels", [["a"], ["a", "a"], ["a", "b"]])
    def test_hardly_any_images(self, labels: list[str]) -> None:
        n = len(labels)
        for contents in (list("xx")[:n], list("xy")[:n]):
            audit = audit_index(index_of(angles(*range(n)), labels, contents))
            assert audit.images == n
            assert (audit.near is None) == (len(set(contents)) == 1)

    def test_a_given_similarity_is_the_cut(self) -> None:
        index = index_of(angles(0, 20, 60), list("aba"), list("xyz"))
        for near, pairs in ((0.9, [[0, 1]]), (0.7, [[0, 1], [1, 2]]), (0.95, [])):
            found = audit_index(index, near=near).near_duplicates
            assert [rows_of(pair.images) for pair in found] == pairs

    @pytest.mark.parametrize("options", [{"k": 0}, {"near": 0.0}, {"near": 1.1}])
    def test_nonsense_is_refused(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigError):
            audit_index(index_of(angles(0, 1), list("ab"), list("xy")), **options)


class TestNeighbours:
    @pytest.mark.parametrize("queries", [1, 7, 256])
    @pytest.mark.parametrize("factory", ["", "HNSW32"])
    def test_are_those_that_sklearn_finds_without_copies(
        self, monkeypatch: pytest.MonkeyPatch, queries: int, factory: str
    ) -> None:
        monkeypatch.setattr("lmm_classifier.index.nearest_others.QUERIES", queries)
        index = random_index(factory=factory)
        contents, k = index.records.contents(), 6
        vectors = index.vectors.take(np.arange(len(index))).astype(np.float64)
        oracle = NearestNeighbors(n_neighbors=len(index), algorithm="brute", metric="cosine").fit(vectors)
        distances, order = oracle.kneighbors(vectors)
        found = {o.row: o for o in nearest_others(index, contents, np.arange(len(index)), k)}
        assert sorted(found) == list(range(len(index)))
        hits = 0
        for row in range(len(index)):
            there = contents[order[row]] != contents[row]
            expected = 1 - distances[row][there][:k]
            assert found[row].complete
            assert not np.isin(contents[found[row].rows], contents[row]).any()
            hits += int(np.isclose(found[row].similarity[:k], expected, atol=1e-5).sum())
        assert hits / (k * len(index)) >= (0.98 if factory else 1)

    def test_near_pairs_are_those_that_sklearn_finds(self) -> None:
        index = random_index(copies=0)
        vectors = index.vectors.take(np.arange(len(index))).astype(np.float64)
        neighbours = NearestNeighbors(radius=0.4, algorithm="brute", metric="cosine").fit(vectors)
        codes = index.records.codes
        expected = {
            (row, other)
            for row, others in enumerate(neighbours.radius_neighbors(vectors, return_distance=False))
            for other in others.tolist()
            if row < other and codes[row] != codes[other]
        }
        found = audit_index(index, near=0.6, k=1000).near_duplicates
        assert {tuple(rows_of(pair.images)) for pair in found} == expected
        assert len(expected) > 20

    def test_a_crowd_is_searched_through_and_its_end_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """60 nearly equal photos of a, and behind them one of b that is nearly equal too."""
        vectors = angles(*np.linspace(0, 0.001, 60), 0.01, 40, 80, 120, 160)
        index = index_of(vectors, ["a"] * 60 + list("bcdef"), [str(i) for i in range(65)])
        audit = audit_index(index, near=0.999, k=2)
        assert (len(audit.near_duplicates), audit.crowded) == (60, 0)
        monkeypatch.setattr("lmm_classifier.index.nearest_others.DEEPEST", 20)
        assert audit_index(index, near=0.999, k=2).crowded == 60

    def test_the_threshold_is_half_the_usual_distance(self) -> None:
        index = index_of(angles(0, 0, 60, 120), list("abab"), list("xxyz"))
        contents = index.records.contents()
        threshold = near_threshold(index, contents, np.asarray([0, 2, 3]))
        assert threshold == pytest.approx(1 - 0.5 * (1 - np.cos(np.radians(60))), abs=1e-6)
        same = index_of(angles(5, 5, 5), list("aba"), list("xyz"))
        assert (
            len(audit_index(same).near_duplicates) == 2
        )  # equal vectors, though rounding may give less than 1


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder with corpus/ and its index/: a copy, a conflict, a near-duplicate and a wrong label."""
    corpus = write_corpus(tmp_path / "corpus")
    (corpus / "red/copy.png").write_bytes((corpus / "red/0.png").read_bytes())
    (corpus / "blue/conflict.png").write_bytes((corpus / "red/1.png").read_bytes())
    near = picture(COLOURS["red"], seed=202)  # as red/2.png, but for a pixel
    near.putpixel((0, 0), (200, 40, 40))
    near.save(corpus / "green/near.png")
    picture(COLOURS["green"], seed=99).save(corpus / "blue/wrong.png")
    assert command("build", "corpus", "-o", "index", "--encoder", "descriptor", cwd=tmp_path).returncode == 0
    return tmp_path


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run("index", *arguments, cwd=cwd)


def page_of(audit: Audit, path: Path, root: Path | None = None, title: str = "t") -> Tags:
    write_audit(path, title, audit, root)
    return parsed(path)


class TestPage:
    def audited(self, label: str = "b", path: str = "b/5.png", many: int = 1) -> Audit:
        vectors = angles(0, 3, 6, 9, 0, 90, 93, 96, 99, 90, 93.1, 102)
        index = index_of(vectors, ["a"] * 5 + ["b"] * 4 + ["a"] * 3, list("0123056785xy"))
        audit = audit_index(index, k=3)

        def named(record: Record) -> Record:
            return replace(record, label=label, path=path)

        return replace(
            audit,
            duplicates=tuple(replace(g, images=tuple(map(named, g.images))) for g in audit.duplicates) * many,
            conflicts=tuple(
                replace(g, images=tuple(map(named, g.images)), proposed=label) for g in audit.conflicts
            ),
            near_duplicates=tuple(
                replace(p, images=tuple(map(named, p.images)), proposed=label) for p in audit.near_duplicates
            ),
            disagreements=tuple(
                replace(
                    d,
                    image=named(d.image),
                    proposed=label,
                    neighbours=tuple(replace(n, label=label, path=path) for n in d.neighbours),
                )
                for d in audit.disagreements
            ),
        )

    @pytest.mark.parametrize("with_root", [False, True])
    def test_hostile_names_change_no_tag_and_no_attribute(self, tmp_path: Path, with_root: bool) -> None:
        root = tmp_path if with_root else None
        good = page_of(self.audited(), tmp_path / "good.html", root)
        bad = page_of(self.audited(HOSTILE, HOSTILE), tmp_path / "bad.html", root, HOSTILE)
        assert good.seen == bad.seen
        assert HOSTILE in bad.text
        odd = page_of(self.audited("a\udcff\x1b\u202e", "a\udcff\x1b\n\0.png"), tmp_path / "odd.html", root)
        assert good.seen == odd.seen
        assert not {"\x1b", "\u202e", "\udcff"} & set(odd.text)

    def test_pictures_names_and_what_is_missing(self, planted: Path) -> None:
        audit = json.loads(command("audit", "index", "--json", cwd=planted).stdout)
        assert command("audit", "index", "corpus", cwd=planted).returncode == 2
        page = (planted / "audit.html").read_text(encoding="utf-8")
        tags = parsed(planted / "audit.html")
        assert {tag for tag, _ in tags.seen}.isdisjoint({"script", "link", "iframe", "object"})
        assert "Content-Security-Policy" in page
        assert not re.search(r'src="(?!data:)', page)
        assert not re.search(r'href="(?!#)', page)
        assert all("alt" in names for tag, names in tags.seen if tag == "img")
        assert 'alt="blue/conflict.png, labelled blue"' in page
        assert "photo not found" not in page
        (planted / "corpus/blue/conflict.png").unlink()
        (planted / "corpus/red/copy.png").write_bytes(b"GIF89a")
        assert command("audit", "index", "corpus", "-o", "second.html", cwd=planted).returncode == 2
        second = (planted / "second.html").read_text(encoding="utf-8")
        assert "photo not found" in second
        assert "no picture: " in second
        assert command("audit", "index", "nowhere", "-o", "third.html", cwd=planted).returncode == 2
        assert "<img" not in (planted / "third.html").read_text(encoding="utf-8")
        assert audit["conflicts"]

    def test_a_section_says_how_many_more_there_are(self, tmp_path: Path) -> None:
        tags = page_of(self.audited(many=PER_KIND + 3), tmp_path / "p.html")
        assert f"{PER_KIND} shown, 3 more" in tags.text
        assert "img" not in {tag for tag, _ in tags.seen}


class TestCommand:
    def test_findings_are_told_and_give_exit_code_2(self, planted: Path) -> None:
        result = command("audit", "index", "corpus", cwd=planted)
        assert result.returncode == 2
        assert result.stdout.splitlines()[-1] == "audit.html"
        assert "22 images of 3 labels: 1 label conflicts" in result.stdout
        assert "exact copies: red/0.png, red/copy.png" in result.stderr
        assert "blue/conflict.png [blue], red/1.png [red]; proposed: red" in result.stderr
        assert "green/near.png [green], red/2.png [red], similarity" in result.stderr
        assert "blue/wrong.png [blue]" in result.stderr

    def test_json_holds_everything_and_writes_no_page_unasked(self, planted: Path) -> None:
        result = command("audit", "index", "--json", "--encoder", "descriptor", "--k", "3", cwd=planted)
        body = json.loads(result.stdout)
        assert (result.returncode, body["images"], body["k"]) == (2, 22, 3)
        assert body["encoder"]["name"] == "descriptor"
        [conflict] = body["conflicts"]
        assert [image["path"] for image in conflict["images"]] == ["blue/conflict.png", "red/1.png"]
        assert not (planted / "audit.html").exists()

    def test_a_sound_corpus_gives_exit_code_0(self, tmp_path: Path) -> None:
        write_corpus(tmp_path / "corpus")
        command("build", "corpus", "-o", "index", "--encoder", "fake", cwd=tmp_path)
        result = command("audit", "index", cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert "None." in (tmp_path / "audit.html").read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        "wrong", [["nowhere"], ["index", "--encoder", "siglip"], ["index", "--near", "2"]]
    )
    def test_what_cannot_be_done_fails_in_one_line(self, planted: Path, wrong: list[str]) -> None:
        result = command("audit", *wrong, cwd=planted)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1

    def test_names_that_are_not_utf8_survive_json(self, tmp_path: Path) -> None:
        index = index_of(angles(0, 0, 50), ["a\udcff", "b", "b"], list("xxy"))
        body = json.loads(json.dumps(asdict(audit_index(index))))
        assert body["conflicts"][0]["images"][0]["path"] == "a\udcff/0.png"
