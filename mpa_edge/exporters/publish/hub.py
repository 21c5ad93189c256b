"""Upload of a finished export. The token comes from HF_TOKEN and goes nowhere but into the requests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpa_edge.errors import MpaError
from mpa_edge.exporters.publish.manifest import CARD, read_export_manifest
from mpa_edge.runs.files import sha256_file
from mpa_edge.runs.manifest import MANIFEST

TOKEN = "HF_TOKEN"
HIDDEN = "[token]"
CHATTY = ("huggingface_hub", "httpx", "httpcore", "urllib3")


def push(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload what the manifest names, the card and the manifest; returns the address of the commit's repository.

    MpaError in one line where the folder is no finished export, files are not what they were, there is no token, or
    the hub refuses.
    """
    names = to_upload(folder)
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise MpaError("no token for the hub: set HF_TOKEN to one with write access, then run the same command again")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise MpaError(f"'{repo_id}' is no repository name: write OWNER/NAME") from error
    # the token of this process only: never one that somebody stored on this machine
    api = HfApi(token=token, library_name="mpa-edge")
    with _errors_in_one_line(repo_id, token):
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=[_literal(name) for name in names],
            ignore_patterns=[],
            commit_message=f"{folder.name}, exported by mpa-edge",
        )
    return str(made)


def to_upload(folder: Path) -> list[str]:
    """Files of an export by path: those of its manifest, whose hashes must still hold, its card, and the manifest.

    Nothing hidden, and nothing that somebody laid beside them.
    """
    manifest = read_export_manifest(folder)
    if manifest is None:
        raise MpaError(f"{folder} is no finished export: run mpa-edge export first")
    for name, file in manifest.outputs.items():
        path = folder / name
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise MpaError(f"{path} is missing: run mpa-edge export again")
        if path.stat().st_size != file.bytes or sha256_file(path) != file.sha256:
            raise MpaError(f"{path} is not the file that was verified: run mpa-edge export again")
    inside = [name for name in manifest.outputs if not any(part.startswith(".") for part in Path(name).parts)]
    return sorted({*inside, *(name for name in (CARD, MANIFEST) if (folder / name).is_file())})


def _literal(name: str) -> str:
    """A path as a pattern that matches nothing else."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


@contextmanager
def _errors_in_one_line(repo_id: str, token: str) -> Iterator[None]:
    """The hub's refusals as one line with the fix; whatever it says, the token is not in it."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    for name in CHATTY:  # at debug level they log headers
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    except HfHubHTTPError as error:
        # not `from error`: it holds the request with its headers
        raise _refusal(error.response.status_code, repo_id, _first_line(error, token)) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreachable(_first_line(error, token)) from None
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise _unreachable(_first_line(error, token)) from None
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _refusal(status: int, repo_id: str, said: str) -> MpaError:
    if status == 401:
        return MpaError("the hub does not know the token: set HF_TOKEN to a valid one with write access")
    if status == 403:
        return MpaError(f"the token may not write to '{repo_id}': use a name of your own, or a token with write access")
    if status == 404:
        return MpaError(f"no repository '{repo_id}' that this token can see: check the name and the token's rights")
    if status >= 500:
        return MpaError(f"the hub has trouble (status {status}): run the same command again later")
    return MpaError(f"the hub refused '{repo_id}' (status {status}: {said}): check the name, the quota and the token")


def _unreachable(said: str) -> MpaError:
    return MpaError(
        f"cannot reach the hub ({said}): check the network and HF_ENDPOINT, then run the same command again"
    )


def _first_line(error: Exception, token: str) -> str:
    lines = str(error).replace(token, HIDDEN).splitlines()
    return next((line.strip() for line in lines if line.strip()), type(error).__name__)[:200]
