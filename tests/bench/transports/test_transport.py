"""Programs and files through a device's sh, with this machine as the device."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpa_edge.bench.transports import process, transport
from mpa_edge.bench.transports.process import Done, LinkError, patiently
from mpa_edge.bench.transports.transport import BLOCK_BYTES, LocalTransport, quoted_path
from mpa_edge.errors import MpaError
from tests.bench.peers import until

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=40)
NAME = TEXT.map(lambda text: text.replace("/", "|")).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


def is_gone(stat: Path) -> bool:
    """Whether a process has ended, whether or not somebody asked for its exit status."""
    try:
        return " Z " in stat.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def here(tmp_path: Path) -> LocalTransport:
    here = LocalTransport(str(tmp_path / "root"))
    here.patience_s = 0.0
    return here


@pytest.mark.parametrize("rc", [0, 1, 7, 127, 255])
def test_exit_codes_and_streams_stay_apart(here: LocalTransport, rc: int) -> None:
    done = here.run(f"cat; echo no >&2; exit {rc}", timeout_s=5, stdin=b"\0\xff\r\n")
    assert (done.rc, done.stdout, done.stderr) == (rc, b"\0\xff\r\n", b"no\n")


def test_a_command_killed_by_a_signal_has_an_exit_code(here: LocalTransport) -> None:
    assert here.run("kill -9 $$", timeout_s=5).rc == 137


def test_the_longest_commands_arrive(here: LocalTransport) -> None:
    assert here.run(f"printf %s {'x' * 50_000} | wc -c", timeout_s=5).stdout.strip() == b"50000"


@settings(max_examples=60, deadline=None)
@given(words=st.lists(TEXT, min_size=1, max_size=3))
def test_what_is_quoted_reaches_a_real_sh_as_it_was(words: list[str]) -> None:
    command = "printf '%s\\0' " + " ".join(shlex.quote(word) for word in words)
    done = LocalTransport("/nowhere").run(command, timeout_s=10)
    assert done.stdout.decode() == "".join(f"{word}\0" for word in words)


@settings(max_examples=40, deadline=None)
@given(names=st.lists(NAME, min_size=1, max_size=2), content=st.binary(max_size=50))
def test_files_of_any_name_come_and_go(names: list[str], content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, back = Path(folder, "source"), Path(folder, "back")
        source.write_bytes(content)
        target = "/".join([folder, "there", *names])
        here = LocalTransport("/nowhere")
        here.push(source, target, timeout_s=10)
        assert Path(target).read_bytes() == content
        here.pull(target, back, timeout_s=10)
        assert back.read_bytes() == content
        assert sorted(os.listdir(Path(target).parent)) == [names[-1]]


@pytest.mark.parametrize("path", ["-rf", "a/b", "", "/a\0b"])
def test_a_path_that_could_be_an_option_is_refused(path: str) -> None:
    with pytest.raises(MpaError, match="absolute"):
        quoted_path(path)


@pytest.mark.parametrize("there_bytes", [0, 5, BLOCK_BYTES, 2 * BLOCK_BYTES + 5, 3 * BLOCK_BYTES + 7, 5 * BLOCK_BYTES])
def test_a_broken_push_goes_on_and_appears_whole(here: LocalTransport, tmp_path: Path, there_bytes: int) -> None:
    content = os.urandom(3 * BLOCK_BYTES + 7)
    source, target, part = (tmp_path / name for name in ("source", "target", "target.part"))
    source.write_bytes(content)
    # the blocks that are there are not sent again: they are taken as they are
    mark = b"is not sent again"
    part.write_bytes((mark + content[len(mark) :] + bytes(2 * BLOCK_BYTES))[:there_bytes])
    here.push(source, str(target), timeout_s=20)
    goes_on = BLOCK_BYTES <= there_bytes <= len(content)
    assert target.read_bytes() == ((mark + content[len(mark) :]) if goes_on else content)
    assert not part.exists()


@pytest.mark.parametrize("size_bytes", [100, 2 * BLOCK_BYTES])
@pytest.mark.parametrize("shell", ["dash", "busybox", "toybox"])
def test_tools_of_small_systems_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str, size_bytes: int
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    if shell != "dash":
        names = subprocess.run([shell, *(["--list"] if shell == "busybox" else [])], capture_output=True, text=True)
        for name in {"cat", "dd", "mkdir", "mv", "rm", "tail", "wc"} & set(names.stdout.split()):
            (tools / name).symlink_to(f"/usr/bin/{shell}")
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    here, source, back = LocalTransport("/nowhere"), tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(size_bytes))
    here.push(source, f"{tmp_path}/a b/target", timeout_s=10)
    here.pull(f"{tmp_path}/a b/target", back, timeout_s=10)
    assert back.read_bytes() == source.read_bytes()


def test_a_link_cut_in_the_middle_leaves_no_file(here: LocalTransport, tmp_path: Path) -> None:
    # as sshd does it: the input ends early, and cat takes that for the end
    source = tmp_path / "source"
    source.write_bytes(bytes(100))
    sent = here._call
    here._call = lambda command, stdin=None, **limits: sent(command, stdin=stdin[:50], **limits)
    with pytest.raises(MpaError, match="cannot write"):
        here.push(source, f"{tmp_path}/target", timeout_s=5)
    assert not (tmp_path / "target").exists()


def test_a_time_out_ends_the_whole_group(here: LocalTransport, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(LinkError, match="did not answer within 1 s"):
        here.run(f"sleep 61.5 & echo $! >{tmp_path}/pid; wait", timeout_s=1)
    assert time.monotonic() - started < 3
    stat = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    until(lambda: is_gone(stat), 5.0)  # killed, and on a busy machine not gone at once


def test_what_is_left_behind_is_not_waited_for(here: LocalTransport) -> None:
    started = time.monotonic()
    here.run("setsid sleep 3 & echo", timeout_s=2)
    assert time.monotonic() - started < 1


def test_a_program_that_vanishes_is_a_cut_link(here: LocalTransport) -> None:
    with pytest.raises(LinkError, match="was killed"):
        here.run("kill -9 $PPID", timeout_s=5)


def test_a_transfer_that_moves_nothing_is_cut(here: LocalTransport, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mpa_edge.bench.transports.transport.STALL_S", 0.5)
    os.mkfifo(tmp_path / "fifo")
    started = time.monotonic()
    with pytest.raises(LinkError, match="did not answer"):
        here.pull(f"{tmp_path}/fifo", tmp_path / "back", timeout_s=60)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("complaint", "says"),
    [
        (b"cat: write: No space left on device", "No space left on device.*: free space there, or choose"),
        (b"x: Permission denied\n", "Permission denied.*: choose a folder that its user may write to with --root"),
        (b"mkdir: can't create directory '/x': Read-only file system", "choose a folder that can be written to"),
        (b"dd: writing '/x': Disk quota exceeded", "quota of its user"),
        (b"dd: error writing 'x': File too large", "takes no file of this size"),
        (b"sh: 1: Cannot fork", "end other programs"),
        (b"sh: 1: dd: not found", "install what is missing there"),
        (b"cat: x: Input/output error", "its storage is damaged"),
        (b"\x1b[31mred\x07\n", r"\(\[31mred\): check space and permissions there"),
        (b"", "exit 3"),
    ],
)
def test_refusals_are_one_line(here: LocalTransport, complaint: bytes, says: str) -> None:
    with pytest.raises(MpaError, match=says) as caught:
        here.refused("write /b", Done(3, b"", complaint))
    assert str(caught.value).isprintable()


def test_patience_ends(capsys: pytest.CaptureFixture[str]) -> None:
    tries = []

    def fail() -> None:
        tries.append(1)
        raise LinkError("cut: mend it")

    with pytest.raises(LinkError):
        patiently(fail, patience_s=1.5)
    assert len(tries) == 2
    assert "cut: mend it; trying again in 1 s" in capsys.readouterr().err


def test_patience_is_for_links_only() -> None:
    def fail() -> None:
        raise MpaError("wrong: mend it")

    with pytest.raises(MpaError, match="wrong"):
        patiently(fail, patience_s=100)


@pytest.mark.peer
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    small, source = tmp_path / "small", tmp_path / "source"
    small.mkdir()
    source.write_bytes(bytes(3 * BLOCK_BYTES))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    try:
        with pytest.raises(MpaError, match="local cannot write .*No space left on device.*: free space there"):
            LocalTransport(str(small)).push(source, f"{small}/target", timeout_s=10)
    finally:
        subprocess.run(["umount", small], check=True)


def test_no_torch() -> None:
    code = "import sys, mpa_edge.bench.transports.connect; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("stream", ["", ">&2"])
def test_a_command_that_prints_without_end_is_ended(
    here: LocalTransport, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setattr(process, "MOST_BYTES", 1 << 20)
    began = time.monotonic()
    with pytest.raises(MpaError, match="prints without end"):
        here.run(f"exec yes {'x' * 1000} {stream}", timeout_s=60)
    assert time.monotonic() - began < 10


def test_of_a_file_without_end_its_beginning_is_copied(
    here: LocalTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "FETCHED_BYTES", 1000)
    here.pull("/dev/zero", tmp_path / "back", timeout_s=20)
    assert (tmp_path / "back").read_bytes() == bytes(1000)
