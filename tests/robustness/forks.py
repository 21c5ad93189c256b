"""Runs `mpa-edge` commands in forked children of a process that has imported the libraries already, and kills them.

Started by the tests as a program of its own. Reads one JSON order a line from stdin, writes one JSON answer a line:
{"argv": [...], "stage": name | null, "after_s": x, "signal": n} -> {"rc": exit code or -signal, "stderr": text}.
With a stage, the signal is sent so many seconds after that stage has begun; without one, after the start.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from mpa_edge.stages.run import FOLDERS


def warm_up() -> None:
    """Import everything, start no thread: a forked child must be as good as a new process."""
    import torch

    torch.set_num_threads(1)
    import peft  # noqa: F401
    import transformers
    import trl

    _ = (trl.SFTTrainer, trl.SFTConfig, transformers.AutoProcessor, transformers.AutoModelForImageTextToText)
    from mpa_edge.cli import _stage  # noqa: F401
    from mpa_edge.stages import pipeline, training  # noqa: F401
    from mpa_edge.vlm import transformers as vlm  # noqa: F401


def child(argv: list[str], out: int, err: int, max_file_bytes: int | None) -> None:
    from mpa_edge.cli.main import exit_code

    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
    os.dup2(out, 1)
    os.dup2(err, 2)
    code = exit_code(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def has_begun(run: Path, stage: str) -> bool:
    """Whether a stage is under way, or over already."""
    return (run / FOLDERS[stage] / ".inputs.json").exists()


def ended(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def obey(order: dict) -> dict:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            child(order["argv"], out.fileno(), err.fileno(), order.get("max_file_bytes"))
        rc, begun, sent = None, None if order.get("stage") else time.monotonic(), False
        while rc is None:
            time.sleep(0.005)
            rc = ended(pid)
            if begun is None and has_begun(Path(order["run"]), order["stage"]):
                begun = time.monotonic()
            due = begun is not None and order.get("signal") and time.monotonic() - begun >= order["after_s"]
            if rc is None and due and not sent:
                os.kill(pid, order["signal"])
                sent = True
        out.seek(0)
        err.seek(0)
        return {"rc": rc, "stdout": out.read().decode(), "stderr": err.read().decode(errors="replace")}


def main() -> None:
    warm_up()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(obey(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
