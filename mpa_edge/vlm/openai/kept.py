"""Replies that a server was paid for, on the disk before the next request goes out, until what is made of them is.

A kill or a full disk then loses the requests on their way, and no others: a rerun finds the replies and asks for the
rest. A power cut may lose the last seconds as well.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from mpa_edge.runs.files import MB, disk_errors, make_folder
from mpa_edge.runs.paths import open_in_place, remove
from mpa_edge.types import FinishReason, Record, Reply

MOST_REPLIES = 100_000


class KeptReply(Record):
    """One line of the file."""

    key: str
    """Hash of the request."""
    text: str
    """As in `Reply`, like the other two."""
    finish_reason: FinishReason
    """Never failed."""
    n_tokens: int
    """Generated tokens."""


class KeptReplies:
    """The replies in a file of JSON lines; without a file, nothing is kept."""

    def __init__(self, path: Path | None = None) -> None:
        """A line that a kill cut in half is removed, one that is damaged in another way ignored."""
        self._path, self._file, self._replies = path, -1, dict[str, Reply]()
        if path is None:
            return
        make_folder(path.parent)
        with disk_errors(path.parent, MB):
            self._file = open_in_place(path, os.O_RDWR | os.O_APPEND)
            written = path.read_bytes()
            whole = written[: written.rfind(b"\n") + 1]
            os.ftruncate(self._file, len(whole))
        for line in whole.splitlines():
            try:
                found = KeptReply.model_validate_json(line)
            except ValidationError:
                continue
            self._replies[found.key] = Reply(found.text, found.finish_reason, found.n_tokens)

    def get(self, key: str) -> Reply | None:
        """The reply to a request, if it was answered before."""
        return self._replies.get(key)

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply. MpaError where the disk is full."""
        if self._path is None:
            return
        kept = KeptReply(key=key, text=reply.text, finish_reason=reply.finish_reason, n_tokens=reply.n_tokens)
        line = kept.model_dump_json().encode() + b"\n"
        with disk_errors(self._path.parent, MB):
            while line:
                line = line[os.write(self._file, line) :]
        self._replies[key] = reply

    def forget(self, *, only_many: bool = False) -> None:
        """Remove the replies: what was made of them is on the disk. `only_many`: where they would fill the memory."""
        if self._path is not None and self._replies and not (only_many and len(self._replies) < MOST_REPLIES):
            os.ftruncate(self._file, 0)
            self._replies.clear()

    def close(self) -> None:
        """Close the file, and remove it where nothing is in it; safe to call twice."""
        if self._path is not None and self._file >= 0:
            os.close(self._file)
            self._file = -1
            if not self._replies:
                remove(self._path)
