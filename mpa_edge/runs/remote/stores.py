"""Folders behind a URL (`s3://bucket/runs/x`, or any other file system of fsspec): list, read, write, copy, delete.

Credentials come from where the backend looks for them (environment, its own files), never from the URL. Network errors
are retried for a limited time; wrong credentials or a missing bucket are reported at once.
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

from mpa_edge.errors import MpaError, OutsideError
from mpa_edge.runs.files import TEMP_SUFFIX, disk_errors, make_folder
from mpa_edge.runs.paths import inside, move, remove
from mpa_edge.types import is_inside

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
# fingerprint of an object, by backend: S3 and others, Hugging Face buckets, Azure, Google, local folders, memory
MARKS = ("ETag", "etag", "xet_hash", "content_md5", "md5Hash", "LastModified", "mtime", "created")
# limits of the S3 client for one attempt; retries are ours
S3_OPTIONS = {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 1}}}
Made = TypeVar("Made")


@dataclass(frozen=True)
class Stored:
    """Size and fingerprint of one object."""

    size_bytes: int
    mark: str
    """The store's own fingerprint: it changes with the content."""


def is_url(text: str | Path | None) -> bool:
    """Whether this is a URL, not a local path.

    >>> is_url("s3://bucket/runs/x"), is_url("runs/x"), is_url(None)
    (True, False, False)
    """
    return text is not None and URL.match(str(text)) is not None


class Store:
    """One folder behind a URL. Methods raise MpaError if the store refuses or cannot be reached for `retry_s`."""

    def __init__(self, url: str, retry_s: float = RETRY_S) -> None:
        """No request is made yet. MpaError for an unknown kind of URL, or if its package is missing."""
        self.url, self._retry_s = url.rstrip("/"), retry_s
        self._fs, self._root = _opened(self.url)
        protocol = self._fs.protocol
        self._is_local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def listing(self) -> dict[str, Stored]:
        """Every object in the folder: path inside it -> size and fingerprint; empty if there is none."""

        def look() -> dict[str, Any]:
            self._fs.invalidate_cache()
            try:
                return dict(self._fs.find(self._root, detail=True))
            except FileNotFoundError:
                return {}

        start = len(self._root) + 1
        found = self._retried(look)
        names = ((path[start:], info) for path, info in found.items() if path[start:] and not path.endswith("/"))
        return {self._checked(name): _stored(info) for name, info in names}

    def read(self, name: str) -> bytes | None:
        """Content of one object; None if it does not exist."""

        def fetch() -> bytes | None:
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

        return self._retried(fetch)

    def write(self, name: str, data: bytes) -> None:
        """Write one object."""
        self._retried(lambda: self._piped(name, data, "overwrite"))

    def create(self, name: str, data: bytes) -> bool:
        """Write one object that does not exist yet; False if it does. Atomic on S3."""

        def attempt() -> bool:
            try:
                self._piped(name, data, "create")
            except OSError as error:
                if isinstance(error, FileExistsError) or self._fs.exists(self._path(name)):
                    return False
                raise
            return True

        return self._retried(attempt)

    def put(self, folder: Path, names: Sequence[str]) -> dict[str, Stored]:
        """Upload files `names` of a local folder. -> what is stored; without files that no longer exist."""
        return _each(names, lambda name: self._put(folder, name))

    def get(self, folder: Path, names: Sequence[str]) -> None:
        """Download objects into a local folder, each atomically. MpaError if one does not exist."""
        _each(names, lambda name: self._get(folder, name))

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects in this order, so that a kill leaves a known rest. Missing ones are no error."""
        for name in names:

            def delete(path: str = self._path(name)) -> None:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(path)

            self._retried(delete)

    def _checked(self, name: str) -> str:
        """The name of an object; MpaError for one that leads out of the folder."""
        try:
            if not is_inside(name):
                raise OutsideError
            if self._is_local:
                inside(Path(self._root), name)
        except OutsideError as error:
            raise MpaError(
                f"{self.url} contains {name!r:.200}, a path outside of its folder: remove that object first"
            ) from error
        return name

    def _path(self, name: str) -> str:
        return f"{self._root}/{self._checked(name)}"

    def _piped(self, name: str, data: bytes, mode: str) -> None:
        self._make_parent(name)
        self._fs.pipe_file(self._path(name), data, mode=mode)

    def _make_parent(self, name: str) -> None:
        """Object stores need no folders, and making one could create a bucket."""
        if self._is_local:
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
                    raise OSError(f"{name} was stored with {found.size_bytes} of {size_bytes} bytes")
                return found
            if (folder / name).exists():
                raise FileNotFoundError(name)
            return None

        return self._retried(copied)

    def _get(self, folder: Path, name: str) -> bool:
        target = inside(folder, name)
        temp = target.with_name(f".{target.name}.{os.getpid()}{TEMP_SUFFIX}")

        def copied() -> bool:
            with disk_errors(folder, 0):
                self._fs.get_file(self._path(name), str(temp))
                move(temp, target)
            return True

        make_folder(target.parent)
        try:
            return self._retried(copied)
        finally:
            remove(temp, quietly=True)

    def _retried(self, action: Callable[[], Made]) -> Made:
        """Retry until it works or time is up; what a retry cannot fix is raised at once."""
        deadline, wait_s = time.monotonic() + self._retry_s, FIRST_WAIT_S
        while True:
            try:
                return action()
            except MpaError:
                raise
            except Exception as error:  # each backend has errors of its own
                said = self._final_error(error)
                if said is None and time.monotonic() + wait_s > deadline:
                    said = MpaError(
                        f"{self.url} cannot be reached ({_words(error)}): check the network and the endpoint, then "
                        f"rerun; nothing is lost"
                    )
                if said is not None:
                    raise said from error
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _final_error(self, error: Exception) -> MpaError | None:
        """The error for the user if a retry cannot help, else None."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, PermissionError) or type(error).__name__ in NO_LOGIN or status in (401, 403):
            return MpaError(
                f"{self.url} refuses these credentials ({_words(error)}): set the store's credentials in the "
                f"environment, for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if isinstance(error, FileNotFoundError) or status == 404:
            return MpaError(f"{self.url} does not exist ({_words(error)}): create the bucket first, or name another")
        if isinstance(error, ImportError):
            return _missing(self.url, error)
        return None


def _opened(url: str) -> tuple[Any, str]:
    """(file system, path) of a URL."""
    import fsspec

    scheme, _, rest = url.partition("://")
    if "@" in rest.partition("/")[0]:
        raise MpaError(
            f"{scheme}://…@… contains credentials: put them into the environment and leave them out of the URL"
        )
    options: dict[str, Any] = S3_OPTIONS if scheme in ("s3", "s3a") else {}
    try:
        fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        raise _missing(url, error) from error
    except ValueError as error:
        raise MpaError(f"{scheme}:// is not supported: use s3://BUCKET/FOLDER, or a folder") from error
    if hasattr(fs, "retries"):
        fs.retries = 1  # s3fs would try five times inside each of our attempts
    return fs, str(path).rstrip("/")


def _missing(url: str, error: ImportError) -> MpaError:
    from fsspec.registry import known_implementations

    scheme = url.partition("://")[0]
    package = known_implementations.get(scheme, {}).get("class", "").partition(".")[0]
    package = {"s3fs": "s3fs", "gcsfs": "gcsfs", "adlfs": "adlfs"}.get(package, error.name or package)
    return MpaError(f"{scheme}:// needs a package that is missing: pip install {package}")


def _stored(info: dict[str, Any]) -> Stored:
    mark = next((info[key] for key in MARKS if info.get(key)), "")
    # one backend returns a timestamp in a listing and a datetime for a single object
    return Stored(int(info.get("size") or 0), str(mark.timestamp() if isinstance(mark, datetime) else mark))


def _words(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _each(names: Sequence[str], work: Callable[[str], Made | None]) -> dict[str, Made]:
    """Name -> result of `work`, several at a time; without those that are None."""
    if len(names) <= 1:
        found = [(name, work(name)) for name in names]
    else:
        with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
            found = list(zip(names, pool.map(work, names), strict=True))
    return {name: made for name, made in found if made is not None}
