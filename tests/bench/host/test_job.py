"""A detached job: whatever is cut, killed or restarted, each line comes once and in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from mpa_edge.bench.host.job import Job, Poll, _cut_torn_line
from mpa_edge.bench.transports.connect import connect
from mpa_edge.bench.transports.process import Done, LinkError
from mpa_edge.bench.transports.transport import LocalTransport, Transport
from mpa_edge.errors import MpaError
from tests.bench.peers import AdbPeer, SshPeer, adbd, sshd, until

SCRIPT = Path(__file__).parents[3] / "export" / "runners" / "job.sh"
# goes on behind its last line, as the real runner does
COUNT = (
    "n=$(cat out.jsonl 2>/dev/null | wc -l); "
    'while [ $n -lt {n} ]; do n=$((n + 1)); echo "$n" >>out.jsonl; sleep {s}; done'
)

pytestmark = pytest.mark.slow  # processes that are waited for, stopped and killed
COMMAND = COUNT.format(n=15, s=0.04)
EXPECTED = [str(n + 1) for n in range(15)]


@pytest.fixture
def here(tmp_path: Path) -> LocalTransport:
    return LocalTransport(str(tmp_path / "root"))


@pytest.fixture
def folder(here: LocalTransport) -> Iterator[str]:
    folder = f"{here.root}/jobs/it's a (job); x"
    yield folder
    Job(here, folder).stop()


def pid_of(folder: str) -> int:
    return int(Path(folder, "pid").read_text().split()[0])


def group_of(folder: str) -> list[int]:
    """Everything of a job, as its environment says."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"MPA_EDGE_JOB=({folder})".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def power_off(folder: str) -> None:
    """All processes of the job are gone at once, none says a word."""
    for pid in group_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    until(lambda: not group_of(folder))


def test_a_job_is_begun_joined_and_read(here: LocalTransport, folder: str, tmp_path: Path) -> None:
    job = Job(here, folder)
    assert job.state() == "none"
    assert job.start(COMMAND) == "none"
    assert (job.start(COMMAND), job.state()) == ("running", "running")
    assert list(job.lines(tmp_path / "copy", stall_s=10, poll_s=0.05)) == EXPECTED
    assert Job(here, folder).start(COMMAND) == "ended"
    assert Job(here, folder).poll().rc == 0
    assert list(Job(here, folder).lines(tmp_path / "copy", stall_s=10)) == EXPECTED
    assert list(Job(here, folder).lines(tmp_path / "other copy", stall_s=10)) == EXPECTED


def test_many_starts_at_once_begin_one(here: LocalTransport, folder: str, tmp_path: Path) -> None:
    Job(here, folder).start("exit 1")
    until(lambda: Job(here, folder).state() == "ended")
    with ThreadPoolExecutor(5) as clients:
        waits = f"until [ -e go ]; do sleep 0.1; done; {COMMAND}"
        found = list(clients.map(lambda _: Job(here, folder).start(waits), range(5)))
    Path(folder, "go").touch()
    assert sorted(found) == ["ended"] + 4 * ["running"]
    assert list(Job(here, folder).lines(tmp_path / "copy", stall_s=10, poll_s=0.05)) == EXPECTED


def test_the_whole_output_is_kept_apart(here: LocalTransport, folder: str, tmp_path: Path) -> None:
    job = Job(here, folder)
    job.start("echo said; echo complained >&2; printf '\\303\\274 \\342\\200\\250 x\\n' >>out.jsonl; exit 9")
    assert list(job.lines(tmp_path / "copy", stall_s=10, poll_s=0.1)) == ["ü \u2028 x"]
    assert job.poll().rc == 9
    assert job.errors() == "said\ncomplained"


def test_what_failed_is_begun_again(here: LocalTransport, folder: str, tmp_path: Path) -> None:
    job = Job(here, folder)
    job.start("echo 1 >>out.jsonl; exit 9")
    list(job.lines(tmp_path / "copy", stall_s=10, poll_s=0.1))
    assert job.start(COMMAND) == "ended"
    assert list(job.lines(tmp_path / "copy", stall_s=10, poll_s=0.05)) == EXPECTED


def test_a_killed_job_goes_on(here: LocalTransport, folder: str, tmp_path: Path, capsys) -> None:
    job = Job(here, folder)
    job.start(COMMAND)
    lines = job.lines(tmp_path / "copy", stall_s=10, poll_s=0.1)
    got = [next(lines) for _ in range(3)]
    power_off(folder)
    assert got + list(lines) == EXPECTED
    assert "was killed, or the device restarted" in capsys.readouterr().err


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_runner_that_lost_its_watcher_is_ended_before_the_next(
    here: LocalTransport, folder: str, tmp_path: Path, by_hand: bool
) -> None:
    job = Job(here, folder)
    job.start(COMMAND)
    until(lambda: job.poll().size > 0)
    os.kill(pid_of(folder), signal.SIGKILL)
    until(lambda: job.state() == "dead")
    assert group_of(folder)
    if by_hand:
        assert job.start(COMMAND) == "dead"
    assert list(job.lines(tmp_path / "copy", stall_s=10, poll_s=0.05)) == EXPECTED


def test_a_number_that_another_process_has_now_is_not_taken_for_the_job(here, folder: str, tmp_path: Path) -> None:
    job = Job(here, folder)
    job.start("sleep 61.7")
    ticks = Path(folder, "pid").read_text().split()[1]
    power_off(folder)
    Path(folder, "pid").write_text(f"{os.getpid()} {ticks}\n")
    assert job.state() == "dead"
    job.stop()
    assert job.start(COMMAND) == "dead"
    assert list(job.lines(tmp_path / "copy", stall_s=10, poll_s=0.05)) == EXPECTED


def test_a_torn_line_is_taken_away(here: LocalTransport, folder: str, tmp_path: Path) -> None:
    job = Job(here, folder)
    job.start("printf '1\\n2\\nto' >>out.jsonl; sleep 61.7")
    lines = job.lines(tmp_path / "copy", stall_s=30, poll_s=0.1)
    assert [next(lines), next(lines)] == ["1", "2"]
    power_off(folder)
    job.start(COMMAND, tmp_path / "copy")
    assert list(lines) == EXPECTED[2:]
    assert Path(folder, "out.jsonl").read_bytes() == (tmp_path / "copy").read_bytes()


@pytest.mark.parametrize("lost", ["2\n3\n", "3\n", "ashes"])
def test_lines_that_the_device_lost_are_given_back(
    here: LocalTransport, folder: str, tmp_path: Path, lost: str
) -> None:
    job, out, copy = Job(here, folder), Path(folder, "out.jsonl"), tmp_path / "copy"
    job.start("printf '1\\n2\\n3\\n' >>out.jsonl; sleep 61.7")
    lines = job.lines(copy, stall_s=30, poll_s=0.1)
    assert [next(lines) for _ in range(3)] == ["1", "2", "3"]
    power_off(folder)
    out.write_text("1\n2\n3\n".removesuffix(lost) if lost != "ashes" else "\0" * 6)
    job.start(COMMAND, copy)
    assert list(lines) == EXPECTED[3:]
    assert out.read_bytes() == copy.read_bytes()


def test_a_torn_copy_is_mended(here: LocalTransport, folder: str, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("1\n2\n3")
    job = Job(here, folder)
    job.start(COMMAND)
    assert list(job.lines(tmp_path / "copy", stall_s=10, poll_s=0.05)) == EXPECTED


def test_stop_ends_everything_also_what_tried_to_get_away(here: LocalTransport, folder: str) -> None:
    job = Job(here, folder)
    job.stop()
    job.start("setsid sleep 61.7 & nohup sleep 61.7 & trap '' TERM; while :; do sleep 0.2; done")
    until(lambda: len(group_of(folder)) >= 4)
    job.stop()
    assert not group_of(folder)
    assert job.state() == "dead"
    job.stop()


def test_a_neighbour_is_left_in_peace(here: LocalTransport, folder: str) -> None:
    other = Job(here, f"{folder}0")
    other.start("sleep 61.7")
    Job(here, folder).start("sleep 61.7")
    Job(here, folder).stop()
    assert other.state() == "running"
    other.stop()


def test_a_job_that_hangs_is_stopped(here: LocalTransport, folder: str, tmp_path: Path) -> None:
    job = Job(here, folder)
    job.start("echo 1 >>out.jsonl; echo 'waits for a lock' >&2; sleep 61.7")
    lines = job.lines(tmp_path / "copy", stall_s=0.5, poll_s=0.1)
    assert next(lines) == "1"
    with pytest.raises(MpaError, match=r"gave no answer for 0 s and was stopped \(waits for a lock\): rerun"):
        next(lines)
    assert not group_of(folder)


def test_a_job_that_is_killed_again_and_again_is_given_up(here: LocalTransport, folder: str, tmp_path: Path) -> None:
    job = Job(here, folder)
    job.start("echo 'too much memory' >&2; kill -9 $PPID")
    with pytest.raises(MpaError, match=r"was killed 4 times \(too much memory\): check whether"):
        list(job.lines(tmp_path / "copy", stall_s=10, poll_s=0.05))


def test_a_clock_that_is_set_does_not_matter(
    here, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(moments)))
    job = Job(here, folder)
    job.start(COMMAND)
    for at in (0, 2**31, 10**9):
        os.utime(Path(folder, "pid"), (at, at))
    assert list(job.lines(tmp_path / "copy", stall_s=1, poll_s=0.05)) == EXPECTED


@pytest.mark.parametrize("name", ["/a\nb", "/a\0b", "relative"])
def test_folders_that_cannot_be_named_are_refused(here: LocalTransport, name: str) -> None:
    with pytest.raises(MpaError):
        Job(here, name)


def test_a_folder_that_cannot_be_made(here: LocalTransport, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MpaError, match="cannot write"):
        Job(here, f"{tmp_path}/file/job").start("true")


@pytest.mark.parametrize("shell", ["dash", "busybox sh", "mksh", "bash --posix"])
def test_every_sh_does(tmp_path: Path, shell: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    # sh is what job.sh starts itself with
    (tools / "sh").write_text(f'#!/bin/dash\nexec {shell} "$@"\n')
    (tools / "sh").chmod(0o755)
    folder, env = str(tmp_path / "it's a job"), {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}

    def job(*words: str) -> str:
        argv = [*shell.split(), str(SCRIPT), words[0], folder, *words[1:]]
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=True).stdout

    assert job("start", "echo 1 >>out.jsonl; printf to >>out.jsonl; sleep 61.7") == "none\n"
    until(lambda: job("poll", "0") == "running - 4\n1\nto")
    assert job("start", "true") == "running\n"
    job("stop")
    assert job("poll", "99") == "dead - 4\n"
    assert job("start", "echo 2 >>out.jsonl; exit 3") == "dead\n"
    until(lambda: job("poll", "2") == "ended 3 4\n2\n")


class Cut(LocalTransport):
    """A link that breaks at every third call."""

    calls = 0

    def _call(self, command: str, **given):
        self.calls += 1
        if self.calls % 3 == 0:
            raise LinkError("cut: fix it")
        return super()._call(command, **given)


def test_a_link_that_breaks_all_the_time(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpa_edge.bench.transports.process.FIRST_WAIT_S", 0.01)
    job = Job(Cut(str(tmp_path)), folder)
    job.start(COMMAND)
    assert list(job.lines(tmp_path / "copy", stall_s=10, poll_s=0.05)) == EXPECTED
    assert job.poll() == Poll("ended", 0, 36, b"")


CLIENT = """
import sys
from pathlib import Path
from mpa_edge.bench.host.job import Job
from mpa_edge.bench.transports.connect import connect
via, config, folder, copy, command = sys.argv[1:]
job = Job(connect(via, root="/nowhere", ssh_config=config or None), folder)
job.start(command, Path(copy))
for line in job.lines(Path(copy), stall_s=30, poll_s=0.1):
    print(line, flush=True)
"""


def killed_clients(via: str, config: str, folder: str, copy: Path) -> list[str]:
    """Three clients one after the other, two of them killed in the middle; what the last one says."""
    got: list[str] = []
    for attempt in range(3):
        argv = [sys.executable, "-c", CLIENT, via, config, folder, str(copy), COUNT.format(n=30, s=0.1)]
        client = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        if attempt < 2:
            got = [client.stdout.readline() for _ in range(3 + 7 * attempt)]
            client.kill()
        got = got if attempt < 2 else client.stdout.readlines()
        client.wait()
    return [line.strip() for line in got]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshPeer]:
    with sshd(tmp_path_factory.mktemp("sshd")) as peer:
        yield peer


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbPeer]:
    with adbd(tmp_path_factory.mktemp("adbd")) as peer:
        yield peer


def disturbed(way: Transport, folder: str, copy: Path, faults: dict[str, Callable[[], None]]) -> list[str]:
    """All lines of a job that takes 15 s; each fault comes when its line has come."""
    job, got = Job(way, folder), []
    job.start(COUNT.format(n=75, s=0.2))
    for line in job.lines(copy, stall_s=30, poll_s=0.1):
        got.append(line)
        faults.pop(line, lambda: None)()
    assert not faults
    return got


def counted(n: int) -> list[str]:
    return [str(at + 1) for at in range(n)]


@pytest.mark.peer
def test_ssh_black_hole_and_killed_server(server: SshPeer, here, folder: str, tmp_path: Path, capsys) -> None:
    way = connect(server.via, ssh_config=server.config_file, root=here.root)

    def black_hole() -> None:
        server.freeze()
        threading.Timer(10, server.freeze, (signal.SIGCONT,)).start()

    def restart() -> None:
        server.kill()
        threading.Timer(0.5, server.start).start()

    # ten seconds are fifty lines
    assert disturbed(way, folder, tmp_path / "copy", {"2": black_hole, "65": restart}) == counted(75)
    assert "cannot be reached" in capsys.readouterr().err
    way.close()


@pytest.mark.peer
def test_ssh_killed_clients(server: SshPeer, folder: str, tmp_path: Path) -> None:
    assert killed_clients(server.via, server.config_file, folder, tmp_path / "copy") == counted(30)


@pytest.mark.peer
def test_adb_black_hole_killed_server_and_restart(
    device: AdbPeer, here, folder: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("mpa_edge.bench.host.job.CALL_S", 2.0)
    monkeypatch.setattr("mpa_edge.bench.transports.process.LONGEST_WAIT_S", 1.0)
    for key, value in device.env.items():
        monkeypatch.setenv(key, value)
    way = connect(device.via, root=here.root)

    def black_hole() -> None:
        device.cut()
        threading.Timer(10, device.cut, (False,)).start()

    def restart() -> None:
        device.kill()
        power_off(folder)
        threading.Timer(0.5, device.start).start()

    faults = {"2": device.kill_server, "6": black_hole, "68": restart}
    assert disturbed(way, folder, tmp_path / "copy", faults) == counted(75)
    way.close()


@pytest.mark.peer
def test_adb_killed_clients(device: AdbPeer, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in device.env.items():
        monkeypatch.setenv(key, value)
    assert killed_clients(device.via, "", folder, tmp_path / "copy") == counted(30)


def test_a_job_that_never_ends_its_line_is_stopped(here: LocalTransport, folder: str, tmp_path: Path) -> None:
    job = Job(here, folder)
    job.start("echo 1 >>out.jsonl; tr '\\0' x </dev/zero | head -c 3000000 >>out.jsonl; sleep 60")
    lines = job.lines(tmp_path / "copy", stall_s=30, poll_s=0.05)
    assert next(lines) == "1"
    with pytest.raises(MpaError, match="wrote more than a benchmark does and was stopped"):
        list(lines)
    assert not group_of(folder)
    assert (tmp_path / "copy").read_bytes() == b"1\n"


def test_a_job_that_writes_without_end_is_stopped(
    here: LocalTransport, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpa_edge.bench.host.job.OUT_BYTES", 10_000_000)
    job = Job(here, folder)
    job.start("yes '{}' >>out.jsonl")
    with pytest.raises(MpaError, match="wrote more than a benchmark does and was stopped"):
        list(job.lines(tmp_path / "copy", stall_s=30, poll_s=0.05))
    assert not group_of(folder)
    assert (tmp_path / "copy").stat().st_size < 12_000_000


@pytest.mark.parametrize("said", ["hello", "running - -1", "running x 5", "ended 99999 5", ""])
def test_what_is_no_state_is_one_line(folder: str, tmp_path: Path, said: str) -> None:
    class Strange(LocalTransport):
        def run(self, command: str, **options: object) -> Done:
            return Done(0, said.encode() + b"\nrest", b"")

    with pytest.raises(MpaError, match="printed something else than a state"):
        Job(Strange(str(tmp_path / "root")), f"{tmp_path}/root/x").poll()


@pytest.mark.parametrize("torn", [b"", b"x", b"x" * 3_000_000])
@pytest.mark.parametrize("whole", [b"", b"1\n", b"1\n" * 900_000])
def test_of_a_copy_whole_lines_stay(tmp_path: Path, whole: bytes, torn: bytes) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(whole + torn)
    assert _cut_torn_line(copy) == len(whole)
    assert copy.read_bytes() == whole
