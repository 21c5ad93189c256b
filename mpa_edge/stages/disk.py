"""A full disk under libraries that do not raise OSError for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpa_edge.runs.files import disk_errors, disk_full

# safetensors words it as the operating system does; torch.save only knows that fewer bytes arrived
PHRASES = ("No space left", "File too large", "Disk quota exceeded", "file write failed", "unexpected pos")


@contextmanager
def disk_guard(folder: Path, need_bytes: int) -> Iterator[None]:
    """Turn a full disk inside the block into an MpaError, also where safetensors or torch met it."""
    with disk_errors(folder, need_bytes):
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            if any(phrase in str(error) for phrase in PHRASES):
                raise disk_full(folder, need_bytes) from error
            raise
