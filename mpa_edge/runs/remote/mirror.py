"""A run folder behind a URL: the URL is the truth, a local working copy is what the stages see.

At the start what the URL has more, or other, is fetched; while the stages work, what they have written is sent every
few seconds, and whole before a stage is thrown away, when it is finished, and at the end. In the store the order of a
local run folder holds: `manifest.json` goes first when something of its folder changes, and comes last. A kill at any
moment leaves a folder behind the URL from which the next run goes on, on any machine.

Not sent: what is hidden (but for what a stage remembers), temporary files, and pictures that the recipe draws.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mpa_edge.errors import MpaError
from mpa_edge.progress import say
from mpa_edge.runs.files import make_folder, write_bytes
from mpa_edge.runs.lock import run_lock
from mpa_edge.runs.log import LOG_FILE
from mpa_edge.runs.manifest import CLOCK, COMPLETE, INPUTS, MANIFEST, RENDERED, RUN_FILE
from mpa_edge.runs.remote.lease import LEASE_S, Lease
from mpa_edge.runs.remote.stores import Store, Stored, download, is_url, listing, upload
from mpa_edge.runs.write_hooks import WATCHERS

__all__ = ["Mirror", "Store", "Stored", "download", "is_url", "listing", "upload", "work_folder", "working_copy"]

JOURNAL = ".mirror.jsonl"
LAST = (MANIFEST, COMPLETE)
HIDDEN = (INPUTS, CLOCK)
SEND_EVERY_S = 2.0
SCAN_SHARE = 20  # of the time between two looks at most one in so many goes into looking
Local = tuple[int, int]


@dataclass(frozen=True)
class Same:
    """A file that is here and there, as both sides saw it when it was copied."""

    local: Local
    """Size in bytes and time of the last change, ns."""
    stored: Stored
    """What the store said."""


def work_folder(url: str) -> Path:
    """Where the working copy of a URL lies unless the user says otherwise: in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    url = url.rstrip("/")
    return cache / "mpa-edge" / "runs" / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


@contextmanager
def working_copy(url: str, work: str | Path | None = None, lease_s: float = LEASE_S) -> Iterator[Path]:
    """The local folder of a run behind a URL, locked here and there, up to date; what is written in it is sent.

    Raises MpaError where somebody else works there, or the store refuses or stays away.
    """
    folder = make_folder(Path(work) if work else work_folder(url))
    with run_lock(folder):
        store = Store(url)
        mirror, lease = Mirror(store, folder), Lease(store, lease_s)
        lease.take()
        try:
            mirror.pull()
            with _sending(mirror, lease):
                yield folder
        finally:
            lease.release()


@contextmanager
def _sending(mirror: Mirror, lease: Lease) -> Iterator[None]:
    """Send what is new while the block runs, and the rest when it ends, however it ends."""
    sender = Sender(mirror, lease)
    WATCHERS.append(sender.told)
    try:
        yield
    except BaseException:
        with suppress(MpaError):  # what ended the block is what the user must read
            sender.end()
        raise
    else:
        sender.end()
    finally:
        WATCHERS.remove(sender.told)
        sender.stop()


class Sender:
    """Sends beside the stages; they wait for it only where the order matters."""

    def __init__(self, mirror: Mirror, lease: Lease) -> None:
        self._mirror, self._lease = mirror, lease
        self._turn, self._stop, self._look = threading.Lock(), threading.Event(), threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._often, daemon=True, name="mirror")
        self._thread.start()

    def told(self, folder: Path, settled: bool) -> None:
        """A stage has written something; `settled`: it goes on only when the store has it."""
        if not folder.resolve().is_relative_to(self._mirror.folder.resolve()):
            return
        if settled:
            self._send()
        else:
            self._lease.still_ours()
        self._look.set()

    def _send(self) -> float:
        """Send all there is; seconds that it took."""
        started = time.monotonic()
        with self._turn:
            self._lease.check()
            self._mirror.push()
        return time.monotonic() - started

    def _often(self) -> None:
        pause_s = SEND_EVERY_S
        while not self._stop.wait(pause_s):
            if not self._look.wait(timeout=pause_s * 5):
                pass  # not every file has somebody who tells of it: checkpoints, exports
            self._look.clear()
            try:
                pause_s = max(SEND_EVERY_S, SCAN_SHARE * self._mirror.look_s)
                self._send()
                self._away = False
            except MpaError as error:
                if not self._away and not self._stop.is_set():
                    say(f"{error} (going on here, and trying again)")
                self._away = True

    def end(self) -> None:
        """The last of it. MpaError where the store has not got everything."""
        self._send()

    def stop(self) -> None:
        """No more is sent."""
        self._stop.set()
        self._look.set()
        self._thread.join()


class Mirror:
    """What is here, what is there, and what both had when they last were the same."""

    def __init__(self, store: Store, folder: Path) -> None:
        """MpaError where the folder is another's: a working copy may delete what the URL has not."""
        self.store, self.folder, self.look_s = store, folder, 0.0
        self._same = self._read_journal()

    def pull(self) -> None:
        """Take over what others have done behind the URL since; what only this machine has done is kept.

        A stage folder in which somebody else has worked is theirs: of what is only here, files made of the same inputs
        stay. Without anybody else, what is here is as new or newer.
        """
        there = {name: stored for name, stored in self.store.listing().items() if is_mirrored(name)}
        here, same = self._scan(), self._same
        news = {name for name, stored in there.items() if name not in same or same[name].stored != stored}
        news |= {name for name in same if name not in there}
        theirs = {_part_of(name) for name in news}
        other_inputs = {part for part in theirs if self._inputs_differ(part, here, news)}
        wanted = [n for n in there if _part_of(n) in theirs and (n in news or here.get(n) != same[n].local)]
        gone = [
            n for n in here if n not in there and (n in same or _part_of(n) in other_inputs) and _part_of(n) in theirs
        ]
        for name in sorted(gone, key=_order):
            (self.folder / name).unlink(missing_ok=True)
        for name in [name for name in same if name not in there]:
            self._note(name, None)
        if wanted:
            say(f"{self.store.url}: fetching {len(wanted)} files into {self.folder}")
        log = self.folder / LOG_FILE
        begun = log.read_bytes() if LOG_FILE in wanted and log.is_file() else b""
        self._fetch(sorted(wanted, key=_order), there)
        if begun:  # this process has logged before: its lines follow those of the earlier ones
            with log.open("ab") as file:
                file.write(begun)

    def push(self) -> None:
        """Send what is new and withdraw what is gone: a manifest first when it goes, and last when it comes."""
        started = time.monotonic()
        first = self._scan()
        # a second look: what was written before a last file is in it, if that one was in the first
        here = {n: at for n, at in self._scan().items() if _base(n) not in LAST or n in first}
        self.look_s = time.monotonic() - started
        if RUN_FILE not in here:  # a log alone makes no run
            here.pop(LOG_FILE, None)
        changed = [n for n, at in here.items() if n not in self._same or self._same[n].local != at]
        gone = [n for n in self._same if n not in here]
        withdrawn = self._withdrawn(changed, gone)
        self._remove(sorted(withdrawn, key=_order))
        changed = [n for n in here if n not in self._same or self._same[n].local != here[n]]
        self._send([n for n in changed if _base(n) == INPUTS], here)
        self._send([n for n in changed if _base(n) not in (INPUTS, *LAST)], here)
        self._remove([n for n in gone if n not in withdrawn])
        self._send([n for n in changed if _base(n) in LAST], here)

    def _withdrawn(self, changed: Iterable[str], gone: Iterable[str]) -> set[str]:
        """What must go from the store before anything new is sent.

        Manifests above whatever changes; and all of a folder that is made of other inputs now, or its old parts would
        be taken for new ones.
        """
        touched = [*changed, *gone]
        moving = [n for n in touched if _base(n) not in HIDDEN]
        above = {f"{folder}{MANIFEST}" for name in moving for folder in _folders(name)}
        restarted = tuple(n[: -len(INPUTS)] for n in touched if _base(n) == INPUTS)
        return {n for n in self._same if n in above or (restarted and n.startswith(restarted))}

    def _inputs_differ(self, part: str, here: Mapping[str, Local], news: set[str]) -> bool:
        """Whether a stage folder is made of other inputs there than here."""
        name = f"{part}/{INPUTS}"
        if not part or name not in here:
            return bool(part)
        if name not in news:
            return name not in self._same or here[name] != self._same[name].local
        return self.store.read(name) != (self.folder / name).read_bytes()

    def _fetch(self, names: list[str], there: Mapping[str, Stored]) -> None:
        plain, last = ([n for n in names if (_base(n) in LAST) == late] for late in (False, True))
        for some in (plain, last):
            self.store.get(self.folder, some)
            for name in some:
                self._note(name, Same(_local(self.folder / name), there[name]))

    def _send(self, names: list[str], here: Mapping[str, Local]) -> None:
        for name, stored in self.store.put(self.folder, names).items():
            # what changed on the way keeps its old time here, and is sent again
            self._note(name, Same(here[name], stored))

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self.store.delete([name])
            self._note(name, None)

    def _scan(self) -> dict[str, Local]:
        """Every file that is mirrored, with what changes when somebody writes to it."""
        found, waiting = {}, [self.folder]
        while waiting:
            with suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    name = os.path.relpath(entry.path, self.folder)
                    if entry.is_dir(follow_symlinks=False):
                        waiting += [Path(entry.path)] if is_mirrored(f"{name}/x") else []
                    elif entry.is_file() and is_mirrored(name):
                        with suppress(FileNotFoundError):
                            status = entry.stat()
                            found[name] = (status.st_size, status.st_mtime_ns)
        return found

    def _read_journal(self) -> dict[str, Same]:
        """What was the same when it was last written down; one line a copied file, later ones count."""
        path, head = self.folder / JOURNAL, json.dumps({"url": self.store.url})
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines[:1] != [head] and (lines or self._scan().keys() - {LOG_FILE}):
            raise MpaError(f"{self.folder} is no working copy of {self.store.url}: choose an empty folder with --work")
        same: dict[str, Same] = {}
        for line in lines[1:]:
            with suppress(ValueError):  # the line that a kill tore
                name, *rest = json.loads(line)
                same.pop(name, None)
                if rest:
                    same[name] = Same((rest[0], rest[1]), Stored(rest[2], rest[3]))
        write_bytes(path, "\n".join([head, *(_line(n, one) for n, one in same.items()), ""]).encode())
        return same

    def _note(self, name: str, one: Same | None) -> None:
        self._same.pop(name, None)
        if one is not None:
            self._same[name] = one
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(_line(name, one) + "\n")


def is_mirrored(name: str) -> bool:
    """Whether a file of a run folder belongs into the store.

    >>> [is_mirrored(n) for n in ("run.json", "1-annotate/.inputs.json", ".lock", "images/0.png", "exports/.parts/x")]
    [True, True, False, False, False]
    """
    *folders, base = name.split("/")
    hidden = base.startswith(".") and base not in HIDDEN
    return not hidden and folders[:1] != [RENDERED] and not any(part.startswith(".") for part in folders)


def _line(name: str, one: Same | None) -> str:
    rest = [] if one is None else [*one.local, one.stored.size_bytes, one.stored.mark]
    return json.dumps([name, *rest])


def _local(path: Path) -> Local:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _part_of(name: str) -> str:
    """The stage folder of a file; empty for what lies at the top."""
    return name.partition("/")[0] if "/" in name else ""


def _folders(name: str) -> list[str]:
    """Every folder above a file, with its slash; the top is no stage.

    >>> _folders("exports/int8/model.onnx")
    ['exports/', 'exports/int8/']
    """
    parts = name.split("/")[:-1]
    return ["/".join(parts[: i + 1]) + "/" for i in range(len(parts))]


def _order(name: str) -> tuple[int, str]:
    """Manifests and inputs first: without them the rest counts for nothing."""
    return (0 if _base(name) in (*LAST, INPUTS) else 1), name
