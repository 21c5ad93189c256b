"""Runs llama.cpp's converter in this process: `python driver.py PARENT CONVERTER PRE_TOKENIZER NAMES ARGUMENTS...`.

It is started as a program, so it imports nothing of this package. Two things are changed. Where the converter does not
know a tokenizer's fingerprint, it takes the pre-tokenizer that was derived from the tokenizer's rules. Tensors get the
names that the JSON file NAMES gives them; those that are not in it are left out. The last line on stdout is the peak
resident memory in bytes. It ends with its parent process, and exits with ENOSPC on a full disk.
"""

from __future__ import annotations

import ctypes
import errno
import json
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
    parent, converter, pre_tokenizer, names, *arguments = sys.argv[1:]
    # a killed export must not leave its converter writing beside the next one; Linux only, as in runs.isolation
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != int(parent):
            sys.exit(1)
    sys.path[:0] = [converter, str(Path(converter) / "gguf-py")]
    use_pre_tokenizer(pre_tokenizer)
    rename_tensors(json.loads(Path(names).read_text(encoding="utf-8")))
    script = str(Path(converter) / "convert_hf_to_gguf.py")
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except OSError as error:
        # numpy reports a short write as "n requested and m written", without an errno
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and " requested and " not in str(error):
            raise
        sys.exit(errno.ENOSPC)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak if platform.system() == "Darwin" else 1024 * peak)  # noqa: T201 - read by the parent


def use_pre_tokenizer(name: str) -> None:
    """Take `name` for a tokenizer whose fingerprint the converter does not know; "" leaves that an error."""
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


def rename_tensors(names: dict[str, str]) -> None:
    """Give the tensors of every weight file the names that the converter knows."""
    from gguf.utility import SafetensorsLocal

    read = SafetensorsLocal.__init__

    def read_renamed(self: Any, filename: Path) -> None:
        read(self, filename)
        self.tensors = {names[key]: tensor for key, tensor in self.tensors.items() if key in names}

    SafetensorsLocal.__init__ = read_renamed


if __name__ == "__main__":
    main()
