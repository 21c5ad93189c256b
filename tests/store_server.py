"""A real S3-compatible server on the loopback interface: SeaweedFS, whose binary a Python package carries."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BUCKET = "runs"
START_S = 60.0
OWNER = {"AWS_ACCESS_KEY_ID": "owner", "AWS_SECRET_ACCESS_KEY": "owner-secret"}
USER = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": "user-secret"}
PORTS = ("master", "volume", "filer", "s3")
APART = 10_000  # its second port of each kind is so far above the first


@dataclass(frozen=True)
class StoreServer:
    """Where it listens, and what its user has in the environment."""

    endpoint: str

    @property
    def env(self) -> dict[str, str]:
        return {
            **USER,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def running(folder: Path) -> Iterator[StoreServer]:
    """The server with an empty bucket; its user may do everything in the bucket and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s3.json").write_text(
        json.dumps(
            {
                "identities": [
                    identity("owner", OWNER, ["Admin", "Read", "Write", "List"]),
                    identity("user", USER, [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")]),
                ]
            }
        )
    )
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words(folder, ports), stdout=log, stderr=log, start_new_session=True)
    server = StoreServer(f"http://127.0.0.1:{ports['s3']}")
    try:
        wait_until_writable(server, process, folder)
        yield server
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder / "data", ignore_errors=True)
        for left in (
            path for port in ports.values() for path in Path("/tmp").glob(f"seaweedfs-*{port % APART:04d}.sock")
        ):
            left.unlink()


def identity(name: str, keys: dict[str, str], actions: list[str]) -> dict[str, object]:
    pair = {"accessKey": keys["AWS_ACCESS_KEY_ID"], "secretKey": keys["AWS_SECRET_ACCESS_KEY"]}
    return {"name": name, "credentials": [pair], "actions": actions}


def words(folder: Path, ports: dict[str, int]) -> list[str]:
    (folder / "data").mkdir(exist_ok=True)
    fixed = (
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-s3.iam=false",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=8",
        "-volume.minFreeSpace=0",
        "-metricsPort=0",
    )
    weed = Path(sys.executable).parent / "weed"
    chosen = (f"-{name}.port={port}" for name, port in ports.items())
    return [
        str(weed),
        "-logtostderr=true",
        "server",
        f"-dir={folder / 'data'}",
        f"-s3.config={folder / 's3.json'}",
        f"-filer.localSocket={folder / 'filer.sock'}",
        *fixed,
        *chosen,
    ]


def free_ports(n: int) -> list[int]:
    """Free ports whose neighbours `APART` above are free as well."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < n:
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1] % 20_000 + 20_000
            with contextlib.suppress(OSError):
                for number in (port, port + APART):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
                found.append(port)
    return found


def wait_until_writable(server: StoreServer, process: subprocess.Popen[bytes], folder: Path) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(
        key=OWNER["AWS_ACCESS_KEY_ID"],
        secret=OWNER["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=server.endpoint,
        config_kwargs={"retries": {"max_attempts": 0}},
        skip_instance_cache=True,
    )
    fs.retries = 1
    deadline = time.monotonic() + START_S
    for attempt in (lambda: fs.call_s3("create_bucket", Bucket=BUCKET), lambda: fs.pipe_file(f"{BUCKET}/ready", b"1")):
        while True:
            try:
                attempt()
                break
            except Exception as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no store: {error}\n{(folder / 'log').read_text()[-2000:]}") from error
                time.sleep(0.2)


def environment(server: StoreServer, cache: Path) -> dict[str, str]:
    """Of a command on a machine whose cache folder is `cache`: another folder is another machine."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    return kept | server.env | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
