"""A job that was launched: its state, its words, its run folder, its end. The provider's own program is asked."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mpa_edge.cloud import hfjobs, program, skypilot
from mpa_edge.cloud.launch import PROGRAMS, Show
from mpa_edge.cloud.mounts import COPY
from mpa_edge.cloud.secrets import redactor
from mpa_edge.cloud.state import Launched, write_state
from mpa_edge.errors import MpaError
from mpa_edge.runs.files import TEMP_SUFFIX, make_folder
from mpa_edge.runs.lock import LOCK
from mpa_edge.runs.manifest import FOLDERS, MANIFEST, damaged, read_manifest
from mpa_edge.runs.remote.stores import Store, Stored, download, listing

LEASE = ".lock.json"
SMALL_BYTES = 1_000_000
OVER = ("SUCCEEDED", "FAILED", "CANCELLED", "COMPLETED", "CANCELED", "ERROR", "DELETED", skypilot.UNKNOWN)
"""How the state of a job begins that has ended."""
QUICK_S = 5.0
"""A look at a run waits no longer for its store."""


def status(launched: Launched, show: Show) -> str:
    """The provider's word for a job's state. MpaError where its program fails."""
    code, found, said = _asked(launched)
    if code != 0:
        for line in said:
            show(line, True)
        raise _failed(launched, code)
    return found


def _asked(launched: Launched) -> tuple[int, str, list[str]]:
    """Exit code of the provider's program, a job's state, and all that was said."""
    said: list[str] = []
    provider = skypilot if launched.provider == "sky" else hfjobs
    words = provider.status_words(_known_as(launched))
    ended = _call(words, launched, lambda line, _is_stderr: said.append(line))
    return ended.code, provider.status_of(ended.out, _known_as(launched)) or ended.out, said


def progress(launched: Launched) -> str:
    """Which stages of the run in the bucket are finished, and how many parts the one at work has written."""
    try:
        names = Store(launched.url, retry_s=QUICK_S).listing()
    except MpaError as error:
        return f"not seen from here: {error}"
    found = []
    for stage, folder in FOLDERS.items():
        parts = sum(name.startswith(f"{folder}/part-") for name in names)
        if f"{folder}/{MANIFEST}" in names:
            found.append(f"{stage} done")
        elif any(name.startswith(f"{folder}/") for name in names):
            found.append(f"{stage} {parts} parts" if parts else f"{stage} begun")
    return ", ".join(found) or "nothing yet"


def logs(launched: Launched, follow: bool, show: Show) -> None:
    """Show what a job has said so far, or all it says. MpaError where the provider's program fails."""
    provider = skypilot if launched.provider == "sky" else hfjobs
    ended = _call(provider.logs_words(_known_as(launched), follow), launched, show)
    if ended.code != 0:
        raise _failed(launched, ended.code)


def down(folder: Path, launched: Launched, show: Show) -> None:
    """End a job; its run stays in the bucket. One that has ended before is no failure.

    MpaError where the provider's program fails otherwise.
    """
    provider = skypilot if launched.provider == "sky" else hfjobs
    ended = _call(provider.down_words(_known_as(launched)), launched, show)
    if ended.code != 0:
        code, found, _said = _asked(launched)
        if code != 0 or not found.startswith(OVER):
            raise _failed(launched, ended.code)
    write_state(folder, launched.model_copy(update={"state": "down"}))


def fetch(folder: Path, launched: Launched, show: Show) -> None:
    """Bring the run folder: what is missing or different here. MpaError where nothing is there yet.

    Where the package that reads such an address is missing, the provider's own copying program does it.
    """
    try:
        there = listing(launched.url)
    except MpaError as error:
        if "needs a package that is missing" not in str(error):
            raise
        _copied(folder, launched, show)
        return
    names = sorted((name for name in there if _wanted(name)), key=lambda name: name.endswith(MANIFEST))
    if not names:
        raise MpaError(f"nothing is at {launched.url} yet: look how far the job is, mpa-edge cloud status {folder}")
    download(launched.url, make_folder(folder), [name for name in names if not _same(folder / name, there[name])])
    download(launched.url, folder, [name for name in _wrong(folder, names) if name in there])


def _wanted(name: str) -> bool:
    """Whether an object belongs to the run; a store may hold names that lead out of a folder."""
    parts = PurePosixPath(name).parts
    return bool(parts) and ".." not in parts and parts[-1] not in (LOCK, LEASE) and not name.endswith(TEMP_SUFFIX)


def _same(path: Path, stored: Stored) -> bool:
    """Whether a file need not be copied again: large ones are never changed, small ones are quickly copied."""
    return stored.size_bytes > SMALL_BYTES and path.is_file() and path.stat().st_size == stored.size_bytes


def _wrong(folder: Path, names: Sequence[str]) -> list[str]:
    """Files that are not what the manifest beside them says: they were made again with the same size."""
    found = []
    for name in names:
        stage = (folder / name).parent
        manifest = read_manifest(stage) if name.endswith(f"/{MANIFEST}") else None
        inside = damaged(stage, manifest) if manifest else []
        found += [(stage / one).relative_to(folder).as_posix() for one in inside]
    return found


def _copied(folder: Path, launched: Launched, show: Show) -> None:
    words = fetch_words(launched.url, make_folder(folder))
    ended = _call(words, launched, show)
    if ended.code != 0:
        raise MpaError(f"{words[0]} ended with exit code {ended.code}, its own words are above: {shlex.join(words)}")


def fetch_words(url: str, folder: Path) -> list[str]:
    """The address' own copying program. MpaError where none is known."""
    scheme = url.partition("://")[0]
    if scheme not in COPY:
        raise MpaError(f"no copying program is known for {url}: copy it to {folder} with your provider's")
    return shlex.split(COPY[scheme].format(shlex.quote(url), shlex.quote(str(folder))))


def _known_as(launched: Launched) -> str:
    """How the provider calls a job: `sky` by its name, `hf` by an id that it gave."""
    if launched.provider == "sky":
        return launched.name
    if launched.job_id is None:
        raise MpaError(
            f"hf gave no id for job '{launched.name}': look for it with hf jobs list --name {launched.name}, "
            "end it with hf jobs cancel, then remove its cloud/job.json"
        )
    return launched.job_id


def _call(words: Sequence[str], launched: Launched, show: Show) -> program.Ended:
    found = program.find(words[0])
    if found is None:
        how = PROGRAMS[words[0]][1] if words[0] in PROGRAMS else "install it"
        raise MpaError(f"{words[0]} is not on PATH: {how}, then: {shlex.join(words)}")
    return program.run((found, *words[1:]), redactor(launched.secrets, os.environ), show)


def _failed(launched: Launched, code: int) -> MpaError:
    return MpaError(
        f"{launched.provider} ended with exit code {code}, its own words are above: mend that, and give the same "
        "mpa-edge command again"
    )
