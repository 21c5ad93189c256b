"""A data set's parquet files from a hub, where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpa_edge.errors import MpaError
from mpa_edge.questions.find import HUB_ID, hub_patterns

PATIENCE_S = 10.0


def local_data(data: str, parquet: Sequence[str]) -> Path:
    """The folder or file behind `--data`: one that is here, else the snapshot of a hub's data set.

    Raises MpaError where there is neither.
    """
    path = Path(data).expanduser()
    if path.exists():
        return path
    if not HUB_ID.fullmatch(data):
        raise MpaError(f"no folder or file '{data}': name one that exists with --data, or a data set id OWNER/NAME")
    return _snapshot(data, parquet)


def _snapshot(data: str, parquet: Sequence[str]) -> Path:
    """Download the parquet files of the named splits; what was downloaded before is taken from the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            data, repo_type="dataset", allow_patterns=hub_patterns(parquet), etag_timeout=PATIENCE_S
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MpaError(
            f"no folder '{data}' here, and no hub that has a data set of that name ({type(error).__name__}): "
            "name a folder that exists with --data, or try where there is a network"
        ) from error
    return Path(folder)
