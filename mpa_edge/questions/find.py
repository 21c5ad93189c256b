"""Where the files of a benchmark are: in the folder that was named, a little below it, or on a hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.runs.network import check_hub
from mpa_edge.types import is_inside

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT_S = 10.0
DEPTH = ("", "*/", "*/*/")


def local_data(data: str, parquet: Sequence[str]) -> Path:
    """The folder or file that `--data` names: a local one, else a hub's data set, downloaded or from the cache.

    Of a hub's data set, only the parquet files of the splits named `parquet` are downloaded. MpaError where there is
    neither.
    """
    path = Path(data).expanduser()
    if path.exists():
        return path
    if not HUB_ID.fullmatch(data):
        raise MpaError(f"no folder or file '{data}': name one that exists with --data, or a data set id OWNER/NAME")
    check_hub()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # in the hub's file list, `*` also stands for slashes
    patterns = [pattern for n in parquet for pattern in (f"{n}-*.parquet", f"*/{n}-*.parquet", f"*{n}/*.parquet")]
    try:
        folder = snapshot_download(data, repo_type="dataset", allow_patterns=patterns, etag_timeout=HUB_TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MpaError(
            f"no folder '{data}' here, and no hub that has a data set of that name ({type(error).__name__}): "
            "name a folder that exists with --data, or connect to the network"
        ) from error
    return Path(folder)


def find_files(folder: Path, names: Sequence[str]) -> dict[str, Path] | None:
    """(Relative) name -> the file nearest to the folder, at most two levels below it; None where one is missing."""
    found = {}
    for name in names:
        pattern = re.sub(r"([\[*?])", r"[\1]", name)  # matches this name only
        hits = (path for depth in DEPTH for path in sorted(folder.glob(f"{depth}{pattern}")) if path.is_file())
        path = next(hits, None)
        if path is None:
            return None
        found[name] = path
    return found or None


def find_parquet(data: Path, names: Sequence[str]) -> list[Path]:
    """Parquet files of a split, as hubs name them; where `data` is a parquet file, that one."""
    if data.is_file():
        return [data] if data.suffix == ".parquet" else []
    # test-00000-of-00002.parquet, test.parquet, test/0000.parquet
    shapes = [shape for name in names for shape in (f"{name}-*.parquet", f"{name}.parquet", f"{name}/*.parquet")]
    return sorted({path for depth in DEPTH for s in shapes for path in data.glob(f"{depth}{s}") if path.is_file()})


def read_document(path: Path) -> Any:
    """A JSON file. Raises MpaError that names it."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise MpaError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise MpaError(f"{path} is not JSON ({error}): download it again") from error


class ImageFinder:
    """Finds the images of a benchmark in any of the folders where they may be."""

    def __init__(self, data: Path, beside: Sequence[Path], folders: Sequence[str]) -> None:
        """`folders` may be below `data`, or below the folders `beside` which the annotation files are."""
        roots = dict.fromkeys(root / folder for root in (*beside, data) for folder in folders)
        self._data = data
        self._roots = [root for root in roots if root.is_dir()]

    def __call__(self, name: str) -> str | None:
        """Path of an image relative to the data folder; None where no folder has it."""
        if not is_inside(name):
            return None
        found = next((root / name for root in self._roots if (root / name).is_file()), None)
        return found.relative_to(self._data).as_posix() if found else None
