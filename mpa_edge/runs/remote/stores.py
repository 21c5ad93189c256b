"""Folders behind a URL (`s3://bucket/runs/x` and whatever else fsspec knows): list, read, write, copy, delete.

Credentials come from where the backend looks for them (environment, its own files), never from the URL. What fails on
the way is tried again for a bounded time; what cannot get better (credentials, no such bucket) is said at once.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import TEMP_SUFFIX, disk_errors, make_folder

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
RETRY_S = 60.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0
COPIES_AT_ONCE = 8
NO_LOGIN = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "ProfileNotFound",
    "ClientAuthenticationError",
)
# a store's own fingerprint of an object, by backend: S3 and others, a hub's buckets, Azure, Google, folders, memory
MARKS = ("ETag", "etag", "xet_hash", "content_md5", "md5Hash", "LastModified", "mtime", "created")
# patience of the S3 client itself for one attempt; ours is around it
S3_OPTIONS = {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 1}}}
Made = TypeVar("Made")


@dataclass(frozen=True)
class Stored:
    """What a store says of one object."""

    size_bytes: int
    """Its size."""
    mark: str
    """The store's own fingerprint: another one after each write with other content."""


def is_url(text: str | Path | None) -> bool:
    """Whether a run folder lies behind a URL.

    >>> is_url("s3://bucket/runs/x"), is_url("runs/x"), is_url(None)
    (True, False, False)
    """
    return text is not None and URL.match(str(text)) is not None


class Store:
    """One folder behind a URL. Every method raises MpaError where the store refuses or stays away."""

    def __init__(self, url: str, retry_s: float = RETRY_S) -> None:
        """Nothing is asked of the store yet. MpaError for a URL of an unknown kind, or whose package is missing."""
        self.url, self._retry_s = url.rstrip("/"), retry_s
        self._fs, self._root = _opened(self.url)

    def listing(self) -> dict[str, Stored]:
        """Every object below: path inside the folder -> what the store says of it; empty where nothing is there."""

        def look() -> dict[str, Any]:
            self._fs.invalidate_cache()
            try:
                return dict(self._fs.find(self._root, detail=True))
            except FileNotFoundError:
                return {}

        start = len(self._root) + 1
        found = self._patiently(look)
        names = ((path[start:], info) for path, info in found.items() if path[start:] and not path.endswith("/"))
        return {_inside(self.url, name): _stored(info) for name, info in names}

    def read(self, name: str) -> bytes | None:
        """Content of one object; None where it is not there."""

        def fetch() -> bytes | None:
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

        return self._patiently(fetch)

    def write(self, name: str, data: bytes) -> None:
        """Write one object."""
        self._patiently(lambda: self._piped(name, data, "overwrite"))

    def create(self, name: str, data: bytes) -> bool:
        """Write one object that must not be there yet; False where it is. S3 decides that atomically."""

        def attempt() -> bool:
            try:
                self._piped(name, data, "create")
            except OSError as error:
                if isinstance(error, FileExistsError) or self._fs.exists(self._path(name)):
                    return False
                raise
            return True

        return self._patiently(attempt)

    def put(self, folder: Path, names: Sequence[str]) -> dict[str, Stored]:
        """Copy files of a folder here; what is no longer in the folder is left out of the answer."""
        return _each(names, lambda name: self._put(folder, name))

    def get(self, folder: Path, names: Sequence[str]) -> None:
        """Copy objects into a folder, each atomically. FileNotFoundError where one is not there."""
        _each(names, lambda name: self._get(folder, name))

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are gone already do not matter. In order, so that a kill leaves a known rest."""
        for name in names:
            self._patiently(lambda name=name: self._removed(name))  # type: ignore[misc]

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _piped(self, name: str, data: bytes, mode: str) -> None:
        self._make_parent(name)
        self._fs.pipe_file(self._path(name), data, mode=mode)

    def _make_parent(self, name: str) -> None:
        """Folders are there in object stores by themselves: asking for one could make a bucket."""
        if "file" in _protocols(self._fs):
            self._fs.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    def _put(self, folder: Path, name: str) -> Stored | None:
        def copied() -> Stored | None:
            with suppress(FileNotFoundError):
                size_bytes = (folder / name).stat().st_size
                self._make_parent(name)
                self._fs.put_file(str(folder / name), self._path(name))
                self._fs.invalidate_cache()
                found = _stored(self._fs.info(self._path(name)))
                if found.size_bytes != size_bytes and (folder / name).stat().st_size == size_bytes:
                    raise OSError(f"{name} arrived with {found.size_bytes} of {size_bytes} bytes")
                return found
            if (folder / name).exists():
                raise FileNotFoundError(name)
            return None

        return self._patiently(copied)

    def _get(self, folder: Path, name: str) -> bool:
        target = folder / name
        temp = target.with_name(f".{target.name}.{os.getpid()}{TEMP_SUFFIX}")

        def copied() -> bool:
            with disk_errors(folder, 0):
                self._fs.get_file(self._path(name), str(temp))
                os.replace(temp, target)
            return True

        make_folder(target.parent)
        try:
            return self._patiently(copied)
        finally:
            temp.unlink(missing_ok=True)

    def _removed(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def _patiently(self, action: Callable[[], Made]) -> Made:
        """Try until it works or time is up; what waiting cannot mend is raised at once."""
        deadline, wait_s = time.monotonic() + self._retry_s, FIRST_WAIT_S
        while True:
            try:
                return action()
            except MpaError:
                raise
            except Exception as error:  # each backend has errors of its own
                said = self._hopeless(error)
                if said is None and time.monotonic() + wait_s > deadline:
                    said = MpaError(
                        f"{self.url} cannot be reached ({_words(error)}): check the network and the endpoint, and run "
                        f"the same command again; nothing is lost"
                    )
                if said is not None:
                    raise said from error
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _hopeless(self, error: Exception) -> MpaError | None:
        """What no second attempt would mend, as the user's error."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, PermissionError) or type(error).__name__ in NO_LOGIN or status in (401, 403):
            return MpaError(
                f"{self.url} refuses these credentials ({_words(error)}): set those of the store in the environment, "
                f"for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if isinstance(error, FileNotFoundError) or status == 404:
            return MpaError(f"{self.url} is not there ({_words(error)}): make the bucket first, or name another")
        if isinstance(error, ImportError):
            return _missing(self.url, error)
        return None


def _opened(url: str) -> tuple[Any, str]:
    """(file system, path) of a URL."""
    import fsspec

    scheme, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0]:
        raise MpaError(f"{scheme}://…@… holds credentials: put them into the environment and leave them out of the URL")
    options: dict[str, Any] = S3_OPTIONS if scheme in ("s3", "s3a") else {}
    try:
        fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        raise _missing(url, error) from error
    except ValueError as error:
        raise MpaError(f"{scheme}:// is no store that is known here: use s3://BUCKET/FOLDER, or a folder") from error
    if hasattr(fs, "retries"):
        fs.retries = 1  # s3fs would try five times inside each of our attempts
    return fs, str(path).rstrip("/")


def _missing(url: str, error: ImportError) -> MpaError:
    from fsspec.registry import known_implementations

    scheme = url.partition("://")[0]
    package = known_implementations.get(scheme, {}).get("class", "").partition(".")[0]
    package = {"s3fs": "s3fs", "gcsfs": "gcsfs", "adlfs": "adlfs"}.get(package, error.name or package)
    return MpaError(f"{scheme}:// needs a package that is missing: pip install {package}")


def _inside(url: str, name: str) -> str:
    """The name of an object as a path inside a folder; MpaError where it would lead out of it.

    >>> _inside("s3://b/x", "1-annotate/part-00000.parquet")
    '1-annotate/part-00000.parquet'
    """
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise MpaError(f"{url} holds {name!r}, a name that leads out of its folder: remove that object first")
    return name


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _stored(info: dict[str, Any]) -> Stored:
    mark = next((info[key] for key in MARKS if info.get(key)), "")
    # one backend gives a time in a listing and a date for one object
    return Stored(int(info.get("size") or 0), str(mark.timestamp() if isinstance(mark, datetime) else mark))


def _words(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _each(names: Sequence[str], work: Callable[[str], Made | None]) -> dict[str, Made]:
    """What `work` makes of each name, some at a time."""
    if len(names) <= 1:
        found = [(name, work(name)) for name in names]
    else:
        with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
            found = list(zip(names, pool.map(work, names), strict=True))
    return {name: made for name, made in found if made is not None}


# --- for whoever has files to send or to fetch, without a working copy ----------------------------------------------


def upload(url: str, folder: Path, names: Sequence[str]) -> None:
    """Copy files `names` (paths inside `folder`) to the same names below the URL; name the one that matters last, last.

    All but the last name are there before the last one is sent. MpaError where the store refuses or stays away, or a
    file is not there.
    """
    store = Store(url)
    for some in (list(names[:-1]), list(names[-1:])):
        there = store.put(folder, some)
        lacking = [name for name in some if name not in there]
        if lacking:
            raise MpaError(f"{folder / lacking[0]} is not there to be uploaded: run the same command again")


def download(url: str, folder: Path, names: Sequence[str]) -> None:
    """Copy objects `names` below the URL into `folder`, each atomically. MpaError as above."""
    Store(url).get(folder, names)


def listing(url: str) -> dict[str, Stored]:
    """Every object below a URL: path inside it -> size and fingerprint; empty where nothing is there."""
    return Store(url).listing()
