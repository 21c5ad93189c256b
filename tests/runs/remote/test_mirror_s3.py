"""A run folder in a bucket of a real S3-compatible server: kills, other machines, wrong keys, two at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from mpa_edge.errors import MpaError
from mpa_edge.runs.remote.lease import LOCK_NAME
from mpa_edge.runs.remote.mirror import is_mirrored
from mpa_edge.runs.remote.stores import Store
from tests.runs.remote.objects import listing
from tests.store_server import BUCKET, StoreServer, environment, running

pytestmark = [pytest.mark.peer, pytest.mark.slow]
ROOT = Path(__file__).parents[3]
N_PICTURES, IN_A_SHARD = 24, 2
SHARD_S = 0.4
LONG_S = 2.0  # the first of two is still at work when the second has started, also on a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreServer]:
    with running(tmp_path_factory.mktemp("store")) as one:
        yield one


@pytest.fixture(autouse=True)
def keys(server: StoreServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"s3://{BUCKET}/{request.node.name}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(N_PICTURES):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i:02d}.png")
    return folder


def start(server: StoreServer, machine: Path, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.remote_run", *map(str, words)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(server, machine), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def killed_after(process: subprocess.Popen[str], shards: int) -> int:
    """Shards that the teacher was asked about; the process is killed in the middle of the next one."""
    assert process.stdout is not None
    for _ in range(shards):
        assert process.stdout.readline() == "shard\n", process.communicate()[1]
    process.kill()
    return shards + process.communicate()[0].count("shard")


def rows(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_killed_twice_and_finished_on_other_machines(
    server: StoreServer, url: str, pictures: Path, tmp_path: Path
) -> None:
    asked = killed_after(start(server, tmp_path / "one", url, pictures, SHARD_S), 8)
    sent = len([name for name in listing(url) if "/part-" in name])
    assert sent >= 1
    asked += killed_after(start(server, tmp_path / "two", url, pictures, SHARD_S), 3)
    last = start(server, tmp_path / "three", url, pictures)
    out, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    asked += out.count("shard")
    shards = N_PICTURES // IN_A_SHARD
    # what a kill costs: the shard it was in, and what was written in the two seconds that nothing was sent
    assert shards <= asked <= shards + 2 * (1 + 2.5 / SHARD_S)
    apart = start(server, tmp_path / "apart", tmp_path / "plain", pictures)
    assert apart.wait(60) == 0, apart.communicate()[1]
    [work] = (tmp_path / "three" / "mpa-edge" / "runs").iterdir()
    assert rows(work) == rows(tmp_path / "plain")
    assert set(listing(url)) == {
        path.relative_to(work).as_posix()
        for path in work.rglob("*")
        if path.is_file() and is_mirrored(path.relative_to(work).as_posix())
    }


def test_the_second_writer_waits_its_turn(server: StoreServer, url: str, pictures: Path, tmp_path: Path) -> None:
    first = start(server, tmp_path / "one", url, pictures, LONG_S)
    assert first.stdout is not None
    assert first.stdout.readline() == "shard\n"
    lock = json.loads(Store(url).read(LOCK_NAME) or b"")
    assert lock["pid"] == first.pid
    second = start(server, tmp_path / "two", url, pictures)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 1
    assert f"{url} is in use by process {first.pid} on" in err.splitlines()[-1]
    assert first.stdout.readline() == "shard\n"  # it goes on
    assert json.loads(Store(url).read(LOCK_NAME) or b"")["pid"] == first.pid
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    assert LOCK_NAME not in listing(url)


def test_stopped_by_ctrl_c_everything_is_there(server: StoreServer, url: str, pictures: Path, tmp_path: Path) -> None:
    process = start(server, tmp_path / "one", url, pictures, SHARD_S)
    assert process.stdout is not None
    for _ in range(4):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode != 0
    [work] = (tmp_path / "one" / "mpa-edge" / "runs").iterdir()
    assert {f"1-annotate/part-{i:05d}.parquet" for i in range(3)} <= set(listing(url))
    assert rows(work).keys() <= set(listing(url))
    assert LOCK_NAME not in listing(url)


SEND = """
import sys
from pathlib import Path
from mpa_edge.runs.remote.stores import Store
print("sending", flush=True)
Store(sys.argv[1]).put(Path(sys.argv[2]), ["large"])
print("sent", flush=True)
"""


def test_a_killed_upload_leaves_nothing(server: StoreServer, url: str, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        for _ in range(150):
            file.write(os.urandom(2**20))
    process = subprocess.Popen(
        [sys.executable, "-c", SEND, url, str(tmp_path)],
        cwd=ROOT,
        env=environment(server, tmp_path),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "sending\n"
    time.sleep(0.4)
    process.kill()
    assert process.communicate()[0] == ""
    assert listing(url) == {}


def test_the_server_decides_who_creates(url: str) -> None:
    assert [Store(url).create("x", data) for data in (b"1", b"2")] == [True, False]
    assert Store(url).read("x") == b"1"


@pytest.mark.parametrize(
    ("place", "changed", "says"),
    [
        (f"s3://{BUCKET}/x", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses these credentials"),
        (f"s3://{BUCKET}/x", {"AWS_ACCESS_KEY_ID": "nobody"}, "refuses these credentials"),
        (f"s3://{BUCKET}/x", {"AWS_ACCESS_KEY_ID": ""}, "refuses these credentials"),
        ("s3://no-such-bucket/x", {}, "refuses these credentials|does not exist"),
        (f"s3://{BUCKET}/x", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "cannot be reached"),
    ],
)
def test_what_cannot_work_is_one_line(
    place: str, changed: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changed.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    started = time.monotonic()
    with pytest.raises(MpaError, match=says) as caught:
        Store(place, retry_s=1.0).write("y", b"1")
    assert time.monotonic() - started < 20
    assert "secret" not in str(caught.value).lower().replace("aws_secret_access_key", "")
    assert "\n" not in str(caught.value)
