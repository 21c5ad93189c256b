"""Runs llama.cpp's converter in this process: `python driver.py PARENT CONVERTER PRE_TOKENIZER ARGUMENTS...`.

Started as a program of its own, so it imports nothing of this package. It changes one thing: where the converter does
not know a tokenizer's fingerprint, it takes the pre-tokenizer that was found by looking at the tokenizer's rules.
The last line on stdout is the peak of resident memory, bytes. It ends with its parent process, and with the exit code
ENOSPC where the disk is full.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import runpy
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the converter with the rest of the command line."""
    parent, converter, pre_tokenizer, *arguments = sys.argv[1:]
    _die_with(int(parent))
    sys.path[:0] = [converter, str(Path(converter) / "gguf-py")]
    _know_pre_tokenizer(pre_tokenizer)
    script = str(Path(converter) / "convert_hf_to_gguf.py")
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except OSError as error:
        # numpy says "n requested and m written", without a number
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and " requested and " not in str(error):
            raise
        sys.exit(errno.ENOSPC)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak if platform.system() == "Darwin" else 1024 * peak)  # noqa: T201 - read by the parent


def _die_with(parent: int) -> None:
    """A killed export must not leave its converter writing beside the next attempt. Linux only, as in `apart`."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            sys.exit(1)


def _know_pre_tokenizer(name: str) -> None:
    from conversion.base import TextModel  # type: ignore[import-not-found]

    by_fingerprint = TextModel.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(by_fingerprint(self, tokenizer))
        except NotImplementedError:
            if not name:
                raise
            return name

    TextModel.get_vocab_base_pre = get_vocab_base_pre


if __name__ == "__main__":
    main()
