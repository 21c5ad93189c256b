"""Folders behind a URL, on fsspec's own memory and local file systems; S3 is in test_mirror_s3.py."""

from __future__ import annotations

import itertools
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mpa_edge.errors import MpaError
from mpa_edge.runs.remote.stores import Store, is_url
from tests.runs.remote.objects import download, listing, upload

COUNT = itertools.count()


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://stores/{next(COUNT)}" if request.param == "memory" else f"file://{tmp_path}/far"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "here" / "a").write_bytes(b"first")
    (tmp_path / "here" / "deep" / "b").write_bytes(b"")
    return tmp_path / "here"


def test_there_and_back(url: str, files: Path, tmp_path: Path) -> None:
    assert listing(url) == {}
    upload(url, files, ["deep/b", "a"])
    assert {name: one.size_bytes for name, one in listing(url).items()} == {"a": 5, "deep/b": 0}
    download(url, tmp_path / "back", ["a", "deep/b"])
    assert (tmp_path / "back" / "a").read_bytes() == b"first"
    assert sorted(path.name for path in (tmp_path / "back").rglob("*")) == ["a", "b", "deep"]


def test_another_content_is_another_mark(url: str, files: Path) -> None:
    upload(url, files, ["a"])
    before = listing(url)["a"]
    (files / "a").write_bytes(b"other")
    upload(url, files, ["a"])
    assert before != listing(url)["a"]
    assert before.size_bytes == listing(url)["a"].size_bytes


def test_create_is_for_one(url: str) -> None:
    store = Store(url)
    assert store.create("lock", b"1")
    assert not store.create("lock", b"2")
    assert store.read("lock") == b"1"
    store.delete(["lock", "lock"])
    assert store.read("lock") is None


def test_what_is_not_there(url: str, files: Path, tmp_path: Path) -> None:
    with pytest.raises(MpaError, match="does not exist"):
        download(url, tmp_path, ["nothing"])
    assert Store(url).put(files, ["nothing"]) == {}
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("gs://b/x", r"pip install gcsfs$"),
        ("abfs://b/x", r"pip install adlfs$"),
        ("s4://b/x", "use s3://BUCKET/FOLDER, or a folder$"),
        ("ftp://me:hunter2@host/x", "leave them out of the URL$"),
    ],
)
def test_urls_that_cannot_be(url: str, says: str) -> None:
    with pytest.raises(MpaError, match=says) as caught:
        Store(url)
    assert "hunter2" not in str(caught.value)


class Shaky(MemoryFileSystem):
    """Fails so often before each success, as a network does; or sends half of a file."""

    protocol = "shaky"
    fails, half, left = 0, False, 0

    def _fail(self) -> None:
        type(self).left = self.fails if self.left < 0 else self.left - 1
        if self.left >= 0 and self.fails:
            raise ConnectionResetError("the line broke")

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self._fail()
        return super().pipe_file(path, value, mode=mode, **kwargs)

    def put_file(self, lpath, rpath, **kwargs):
        self._fail()
        if self.half and not self.exists(rpath):
            return super().pipe_file(rpath, Path(lpath).read_bytes()[:2])
        return super().put_file(lpath, rpath, **kwargs)


@pytest.fixture
def shaky(monkeypatch: pytest.MonkeyPatch) -> type[Shaky]:
    fsspec.register_implementation("shaky", Shaky, clobber=True)
    monkeypatch.setattr("mpa_edge.runs.remote.stores.FIRST_WAIT_S", 0.01)
    Shaky.fails, Shaky.half, Shaky.left = 0, False, -1
    return Shaky


def test_a_line_that_breaks_is_tried_again(shaky: type[Shaky], files: Path) -> None:
    shaky.fails = 2
    upload("shaky://x/1", files, ["a", "deep/b"])
    assert set(listing("shaky://x/1")) == {"a", "deep/b"}


def test_half_a_file_is_sent_again(shaky: type[Shaky], files: Path) -> None:
    shaky.half = True
    upload("shaky://x/2", files, ["a"])
    assert Store("shaky://x/2").read("a") == b"first"


def test_a_store_that_stays_away_is_one_line(shaky: type[Shaky], files: Path) -> None:
    shaky.fails = 10**9
    with pytest.raises(MpaError, match=r"cannot be reached \(the line broke\): .* nothing is lost$"):
        Store("shaky://x/3", retry_s=0.1).put(files, ["a"])


def test_is_url() -> None:
    assert [is_url(text) for text in ("S3://b", "gs://b/x", "C:\\x", "openai:http://x#m", "a/b", Path("x"))] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize("name", ["../evil", "1-annotate/../../evil", "/etc/evil", "a\0b"])
def test_a_name_that_leads_out_is_refused(shaky: type[Shaky], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Shaky, "find", lambda self, path, **_: {f"{path}/{name}": {"size": 1}})
    with pytest.raises(MpaError, match="a path outside of its folder"):
        listing("shaky://x/4")


def test_an_answer_with_a_status_is_final(shaky: type[Shaky], monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Exception):
        response = type("Response", (), {"status_code": 403})

    def find(*_: object, **__: object) -> None:
        raise Refused("no")

    monkeypatch.setattr(Shaky, "find", find)
    with pytest.raises(MpaError, match="refuses these credentials"):
        listing("shaky://x/5")
