"""A run behind a URL: the stages work in a local copy, and the URL holds the truth.

At the start, whatever is newer behind the URL is downloaded. While the stages work, what they write is uploaded every
few seconds, and completely before a stage is thrown away, when it is finished, and at the end. As in a local run
folder, `manifest.json` is deleted first when something in its folder changes, and written last. A kill at any moment
leaves a folder from which the next run resumes, on any machine.

Not uploaded: hidden files (except those that a stage remembers by), temporary files, and images that the recipe draws.
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
from mpa_edge.runs.paths import inside, open_in_place, remove, require_plain
from mpa_edge.runs.remote.lease import LEASE_S, Lease
from mpa_edge.runs.remote.stores import Store, Stored
from mpa_edge.runs.user_cache import cache_folder
from mpa_edge.runs.write_hooks import WATCHERS

JOURNAL = ".mirror.jsonl"
LAST = (MANIFEST, COMPLETE)
HIDDEN = (INPUTS, CLOCK)
SEND_EVERY_S = 2.0
SCAN_SHARE = 20  # at most 1/20 of the time is spent on scanning the folder
Local = tuple[int, int]


@dataclass(frozen=True)
class Same:
    """A file that is local and stored, as both sides saw it when it was copied."""

    local: Local
    """Size in bytes and modification time in ns."""
    stored: Stored


def work_folder(url: str) -> Path:
    """Default folder of the working copy of a URL, in the user's cache folder."""
    url = url.rstrip("/")
    return cache_folder() / "runs" / f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


@contextmanager
def working_copy(url: str, work: str | Path | None = None, lease_s: float = LEASE_S) -> Iterator[Path]:
    """A local copy of the run behind a URL, up to date and locked on both sides; what is written in it is uploaded.

    `work`: its folder, default `work_folder(url)`. `lease_s`: see Lease. Raises MpaError if another process works
    there, or the store refuses or cannot be reached.
    """
    folder = make_folder(Path(work) if work else work_folder(url))
    with run_lock(folder):
        require_plain(folder)
        store = Store(url)
        mirror, lease = Mirror(store, folder), Lease(store, lease_s)
        lease.take()
        try:
            mirror.pull()
            sender = Sender(mirror, lease)
            WATCHERS.append(sender.notify)
            try:
                yield folder
            except BaseException:
                with suppress(MpaError):  # the user must see the error that ended the block
                    sender.send()
                raise
            else:
                sender.send()
            finally:
                WATCHERS.remove(sender.notify)
                sender.stop()
        finally:
            lease.release()


class Sender:
    """Uploads in a thread; the stages wait for it only where the order matters."""

    def __init__(self, mirror: Mirror, lease: Lease) -> None:
        self._mirror, self._lease = mirror, lease
        self._one_at_a_time, self._stop, self._news = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="mirror")
        self._thread.start()

    def notify(self, folder: Path, settled: bool) -> None:
        """A stage has written something; `settled`: return only when it is uploaded."""
        if not folder.resolve().is_relative_to(self._mirror.folder.resolve()):
            return
        if settled:
            self.send()
        else:
            self._lease.still_ours()
        self._news.set()

    def send(self) -> None:
        """Upload everything that is new. MpaError if the store does not have all of it."""
        with self._one_at_a_time:
            self._lease.check()
            self._mirror.push()

    def stop(self) -> None:
        """Upload nothing more."""
        self._stop.set()
        self._news.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s, is_failing = SEND_EVERY_S, False
        while not self._stop.wait(pause_s):
            # not everything that writes also notifies: checkpoints and exports do not
            self._news.wait(timeout=pause_s * 5)
            self._news.clear()
            try:
                pause_s = max(SEND_EVERY_S, SCAN_SHARE * self._mirror.scan_s)
                self.send()
                is_failing = False
            except MpaError as error:
                if not is_failing and not self._stop.is_set():
                    say(f"{error} (continuing locally, and retrying)")
                is_failing = True


class Mirror:
    """The local folder, the store, and the state in which both were last the same."""

    def __init__(self, store: Store, folder: Path) -> None:
        """MpaError if the folder is not a working copy of this URL: files that the URL lacks may be deleted."""
        self.store, self.folder, self.scan_s = store, folder, 0.0
        self._same = self._read_journal()

    def pull(self) -> None:
        """Download what other machines have done since; what only this machine has done is kept.

        In a stage folder that another machine has changed, its state wins; local files stay if they were made from the
        same inputs. All other local files are as new as the stored ones, or newer.
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
            remove(inside(self.folder, name))
        for name in [name for name in same if name not in there]:
            self._note(name, None)
        if wanted:
            say(f"{self.store.url}: downloading {len(wanted)} files into {self.folder}")
        log = self.folder / LOG_FILE
        begun = log.read_bytes() if LOG_FILE in wanted and log.is_file() else b""
        self._fetch(sorted(wanted, key=_order), there)
        if begun:  # what this process has logged so far follows the log of earlier ones
            with open(log, "ab", opener=open_in_place) as file:
                file.write(begun)

    def push(self) -> None:
        """Upload what is new and delete what is gone: manifests are deleted first and uploaded last."""
        started = time.monotonic()
        first = self._scan()
        # a second scan has everything that was written before a manifest of the first scan
        here = {n: at for n, at in self._scan().items() if _base(n) not in LAST or n in first}
        self.scan_s = time.monotonic() - started
        if RUN_FILE not in here:  # a log alone makes no run
            here.pop(LOG_FILE, None)
        changed = [n for n, at in here.items() if n not in self._same or self._same[n].local != at]
        gone = [n for n in self._same if n not in here]
        outdated = self._outdated(changed, gone)
        self._remove(sorted(outdated, key=_order))
        changed = [n for n in here if n not in self._same or self._same[n].local != here[n]]
        self._send([n for n in changed if _base(n) == INPUTS], here)
        self._send([n for n in changed if _base(n) not in (INPUTS, *LAST)], here)
        self._remove([n for n in gone if n not in outdated])
        self._send([n for n in changed if _base(n) in LAST], here)

    def _outdated(self, changed: Iterable[str], gone: Iterable[str]) -> set[str]:
        """What must be deleted from the store before anything is uploaded.

        Manifests above each change, and all of a folder that is now made from other inputs: its old parts would be
        taken for new ones.
        """
        touched = [*changed, *gone]
        moving = [n for n in touched if _base(n) not in HIDDEN]
        above = {f"{folder}{MANIFEST}" for name in moving for folder in _folders(name)}
        restarted = tuple(n[: -len(INPUTS)] for n in touched if _base(n) == INPUTS)
        return {n for n in self._same if n in above or (restarted and n.startswith(restarted))}

    def _inputs_differ(self, part: str, here: Mapping[str, Local], news: set[str]) -> bool:
        """Whether the stored stage folder is made from other inputs than the local one."""
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
            # a file that changed meanwhile keeps its old time here, and is uploaded again
            self._note(name, Same(here[name], stored))

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self.store.delete([name])
            self._note(name, None)

    def _scan(self) -> dict[str, Local]:
        """Every mirrored file with its size and modification time."""
        found, waiting = {}, [self.folder]
        while waiting:
            with suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    name = os.path.relpath(entry.path, self.folder)
                    if entry.is_dir(follow_symlinks=False):
                        waiting += [Path(entry.path)] if is_mirrored(f"{name}/x") else []
                    elif entry.is_file(follow_symlinks=False) and is_mirrored(name):
                        with suppress(FileNotFoundError):
                            status = entry.stat()
                            found[name] = (status.st_size, status.st_mtime_ns)
        return found

    def _read_journal(self) -> dict[str, Same]:
        """The journal: one line for each copied file, the last one counts."""
        path, head = self.folder / JOURNAL, json.dumps({"url": self.store.url})
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines[:1] != [head] and (lines or self._scan().keys() - {LOG_FILE}):
            raise MpaError(
                f"{self.folder} is not a working copy of {self.store.url}: choose an empty folder with --work"
            )
        same: dict[str, Same] = {}
        for line in lines[1:]:
            with suppress(ValueError, TypeError, LookupError):  # a line cut short by a kill
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
        with open(self.folder / JOURNAL, "a", encoding="utf-8", opener=open_in_place) as file:
            file.write(_line(name, one) + "\n")


def is_mirrored(name: str) -> bool:
    """Whether a file of a run folder is uploaded.

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
    """The stage folder of a file; empty for files at the top."""
    return name.partition("/")[0] if "/" in name else ""


def _folders(name: str) -> list[str]:
    """Every folder above a file but the run folder itself, with a slash.

    >>> _folders("exports/int8/model.onnx")
    ['exports/', 'exports/int8/']
    """
    parts = name.split("/")[:-1]
    return ["/".join(parts[: i + 1]) + "/" for i in range(len(parts))]


def _order(name: str) -> tuple[int, str]:
    """Sort key: manifests and inputs first, because without them the rest does not count."""
    return (0 if _base(name) in (*LAST, INPUTS) else 1), name
