"""The lock of a run behind a URL: an object that its owner renews, and that is free when nobody does.

Clocks of two machines need not agree: a second process watches whether the object changes and compares no times. S3
creates the object atomically, so one of two simultaneous processes gets it. A lock that was left behind is broken by
deleting and creating it; if two processes do so at the same instant, the one whose object is overwritten stops at its
next renewal. Parts of a run are immutable, so this costs work, never rows.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs.remote.stores import Store

LOCK_NAME = ".lock.json"
LEASE_S = 40.0
SETTLE_S = 0.5
LOOKS = 40  # per lease, of a waiting process


class Lease:
    """The lock of one run folder: take it, it renews itself, release it."""

    def __init__(self, store: Store, lease_s: float = LEASE_S) -> None:
        """`lease_s`: the lock is free if it was not renewed for this time."""
        self._store, self._lease_s = store, lease_s
        self._me = {"owner": uuid.uuid4().hex, **_this_process(), "began": datetime.now(UTC).isoformat("T", "seconds")}
        self._beat, self._renewed_s = 0, 0.0
        self._lost: MpaError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_often, daemon=True, name="lease")

    def take(self) -> None:
        """Take the lock. MpaError if another process has it; the lock of a dead one is free after one lease."""
        while not self._store.create(LOCK_NAME, self._said()):
            other = self._read()
            if other is None:
                time.sleep(self._lease_s / LOOKS)
                continue
            if other.get("owner") == self._me["owner"]:
                break  # ours: the response to our first attempt was lost
            if not _is_dead_here(other):
                self._watch(other)
            if other == self._read():
                self._store.delete([LOCK_NAME])
        time.sleep(SETTLE_S)
        found = self._read()
        if found is None or found.get("owner") != self._me["owner"]:
            raise self._in_use(found or {})
        self._renewed_s = time.monotonic()
        self._thread.start()

    def still_ours(self) -> None:
        """Raise MpaError if another process was seen to have the lock; makes no request."""
        if self._lost is not None:
            raise self._lost

    def check(self) -> None:
        """The same; makes a request if the last renewal is long ago."""
        if self._lost is None and time.monotonic() - self._renewed_s > self._lease_s / 2:
            self.renew()
        self.still_ours()

    def renew(self) -> None:
        """Check whose lock it is, and write it again. MpaError if the store cannot be reached."""
        found = self._read()
        if found is not None and found.get("owner") != self._me["owner"]:
            self._lost = self._in_use(found)
            return
        self._beat += 1
        self._store.write(LOCK_NAME, self._said())
        self._renewed_s = time.monotonic()

    def release(self) -> None:
        """Release the lock, unless another process has it."""
        self._stop.set()
        self._thread.join()
        with suppress(MpaError):
            found = self._read()
            if found is not None and found.get("owner") == self._me["owner"]:
                self._store.delete([LOCK_NAME])

    def _renew_often(self) -> None:
        while self._lost is None and not self._stop.wait(self._lease_s / 4):
            with suppress(MpaError):  # unreachable: `check` asks again, and raises
                self.renew()

    def _watch(self, other: dict[str, Any]) -> None:
        """Return if the owner does not renew for one lease; MpaError as soon as it does."""
        say(f"{self._store.url} is locked by {_who(other)}; waiting up to {self._lease_s:.0f} s for a sign of life")
        deadline = time.monotonic() + self._lease_s
        while time.monotonic() < deadline:
            time.sleep(self._lease_s / LOOKS)
            now = self._read()
            if now is None:
                return
            if now != other:
                raise self._in_use(now)

    def _in_use(self, other: dict[str, Any]) -> MpaError:
        return MpaError(f"{self._store.url} is in use by {_who(other)}: wait for it, stop it, or choose another --out")

    def _said(self) -> bytes:
        return (json.dumps(self._me | {"beat": self._beat, "lease_s": self._lease_s}) + "\n").encode()

    def _read(self) -> dict[str, Any] | None:
        """Content of the lock; {} (an unknown owner) if it cannot be parsed, None if there is none."""
        data = self._store.read(LOCK_NAME)
        with suppress(ValueError):
            found = json.loads(data) if data is not None else None
            return found if isinstance(found, dict) or found is None else {}
        return {}


def _who(lock: dict[str, Any]) -> str:
    return f"process {lock.get('pid', 'unknown')} on {lock.get('host', 'another machine')}"


def _this_process() -> dict[str, Any]:
    """What identifies a process among all machines, and among containers on one machine."""
    place = ""
    with suppress(OSError):
        place = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return {"host": socket.gethostname(), "pid": os.getpid(), "place": place, "started": _started(os.getpid())}


def _started(pid: int) -> float | None:
    """When a local process started; None if there is none."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _is_dead_here(lock: dict[str, Any]) -> bool:
    """Whether the owner was a local process that has ended: no need to wait for it."""
    here = _this_process()
    if not here["place"] or lock.get("place") != here["place"] or not isinstance(lock.get("pid"), int):
        return False
    return _started(lock["pid"]) != lock.get("started")
