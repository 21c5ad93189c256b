"""Upload of a finished export. The token is read from HF_TOKEN and appears nowhere but in the requests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpa_edge.errors import MpaError
from mpa_edge.exporters.publish.manifest import CARD, finished
from mpa_edge.runs.log import redacted
from mpa_edge.runs.manifest import MANIFEST
from mpa_edge.runs.network import HUB_TOKEN, check_hub, secret_from
from mpa_edge.runs.paths import inside

CHATTY = ("huggingface_hub", "httpx", "httpcore", "urllib3")


def push(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload what the manifest names, the card and the manifest; returns the address of the repository.

    MpaError in one line where the folder is not a finished export, files have changed, there is no token, or the hub
    refuses.
    """
    names = to_upload(folder)
    token = secret_from(HUB_TOKEN)
    if token is None:
        raise MpaError("no token for the hub: set HF_TOKEN to one with write access and rerun")
    check_hub()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise MpaError(f"'{repo_id}' is not a repository name: write OWNER/NAME") from error
    # the token of this process only: never one that is stored on this machine
    api = HfApi(token=token, library_name="mpa-edge")
    with _one_line_errors(repo_id):
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            # a path as a pattern that matches nothing else
            allow_patterns=["".join(f"[{char}]" if char in "*?[" else char for char in name) for name in names],
            ignore_patterns=[],
            commit_message=f"{folder.name}, exported by mpa-edge",
        )
    return str(made)


def to_upload(folder: Path) -> list[str]:
    """Paths of an export's files: those of its manifest, whose hashes must match, its card, and the manifest.

    Nothing hidden, and nothing that was put beside them.
    """
    manifest = finished(folder)
    for name, file in manifest.outputs.items():
        path = inside(folder, name)
        if not path.is_file():
            raise MpaError(f"{path} is missing: rerun mpa-edge export")
        if not file.is_in(folder):
            raise MpaError(f"{path} is not the file that was verified: rerun mpa-edge export")
    shown = [name for name in manifest.outputs if not any(part.startswith(".") for part in Path(name).parts)]
    return sorted({*shown, *(name for name in (CARD, MANIFEST) if (folder / name).is_file())})


@contextmanager
def _one_line_errors(repo_id: str) -> Iterator[None]:
    """Turn the hub's refusals into one line with the fix, without the token in it."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    def first_line(error: Exception) -> str:
        lines = redacted(str(error)).splitlines()
        return next((line.strip() for line in lines if line.strip()), type(error).__name__)[:200]

    disable_progress_bars()
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    for name in CHATTY:  # at debug level they log headers
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    except HfHubHTTPError as error:
        # not `from error`: it holds the request with its headers
        status, answer = error.response.status_code, first_line(error)
        if status >= 500:
            raise MpaError(f"the hub has a problem (status {status}): rerun later") from None
        known = {
            401: "the hub does not know the token: set HF_TOKEN to a valid one with write access",
            403: f"the token may not write to '{repo_id}': use a name of your own, or a token with write access",
            404: f"no repository '{repo_id}' that this token can see: check the name and the token's rights",
        }
        other = f"the hub refused '{repo_id}' (status {status}: {answer}): check the name, the quota and the token"
        raise MpaError(known.get(status, other)) from None
    except Exception as error:
        foreign = type(error).__module__.startswith(("httpx", "httpcore", "requests"))
        if not foreign and not isinstance(error, OSError | RuntimeError | ValueError):
            raise
        raise MpaError(
            f"cannot reach the hub ({first_line(error)}): check the network and HF_ENDPOINT, then rerun"
        ) from None
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
