"""What llama.cpp says while it works: off the screen, but kept, because its errors are only there."""

from __future__ import annotations

import collections
import ctypes
import functools
from typing import Any

LINES_KEPT = 50
# the library calls them whenever it likes: they live as long as the process
CALLBACKS: list[Any] = []


@functools.cache
def library_log() -> collections.deque[str]:
    """The last lines of llama.cpp's and mtmd's log, oldest first; from the first call on nothing is printed."""
    import llama_cpp
    from llama_cpp import mtmd_cpp

    lines: collections.deque[str] = collections.deque(maxlen=LINES_KEPT)

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _user_data: Any) -> None:
        lines.append(text.decode("utf-8", "replace"))

    CALLBACKS.append(keep)
    llama_cpp.llama_log_set(keep, ctypes.c_void_p())
    mtmd_cpp.mtmd_helper_log_set(keep, ctypes.c_void_p())
    return lines


def last_error() -> str:
    """The last line of the log that tells of a failure, or its last line; without the name of a function in front."""
    text = "".join(library_log()).replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip(" .")]
    failures = [line for line in lines if any(word in line.lower() for word in ("error", "fail", "invalid", "unknown"))]
    said = (failures or lines or ["no reason given"])[-1]
    return said.removeprefix("error: ")[:200]
