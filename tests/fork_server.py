"""Runs `mpa-edge` commands in forked children of a process that has imported the libraries already, and kills them.

Started by the tests as a program of its own. Reads one JSON order a line from stdin, writes one JSON answer a line:
{"argv": [...], "stage": name | null, "after_s": x, "signal": n} -> {"rc": exit code or -signal, "stderr": text}.
With a stage, the signal is sent so many seconds after that stage has begun; without one, after the start. Each command
is a process group, as a shell makes one: Ctrl-C goes to all of it, `orphans` counts who outlives the command.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

from mpa_edge.stages.run import FOLDERS


def warm_up() -> None:
    """Import everything, start no thread: a forked child must be as good as a new process."""
    import torch

    torch.set_num_threads(1)
    # a fork leaves torch without its thread pool, and threads that load weights would race to make the new one
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    import peft  # noqa: F401
    import transformers
    import trl

    _ = (trl.SFTTrainer, trl.SFTConfig, transformers.AutoProcessor, transformers.AutoModelForImageTextToText)
    from mpa_edge.cli import _stage  # noqa: F401
    from mpa_edge.stages.level import training  # noqa: F401
    from mpa_edge.vlm.transformers import model as vlm  # noqa: F401

    warm_up_export()


def warm_up_export() -> None:
    """What an export and its steps import, each in a process of its own."""
    import onnxruntime.quantization.matmul_nbits_quantizer
    import onnxscript

    from mpa_edge.exporters import pipeline
    from mpa_edge.exporters.onnx import files, quantize
    from mpa_edge.vlm.llama_cpp import model as llama_cpp_model
    from mpa_edge.vlm.onnxruntime import model as onnx_model

    _ = (onnxruntime, onnxscript, files, pipeline, quantize, llama_cpp_model, onnx_model)
    # its steps are forked as well: each would import the same libraries again, for seconds
    start = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: start("fork" if method else None)


def child(order: dict, out: int, err: int) -> None:
    from mpa_edge.cli.main import exit_code

    os.setpgid(0, 0)
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    if order["max_file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["max_file_bytes"], resource.RLIM_INFINITY))
    os.dup2(out, 1)
    os.dup2(err, 2)
    code = exit_code(order["argv"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def has_begun(run: Path, stage: str) -> bool:
    """Whether a stage is under way, or over already; in place of a stage, whether a file is there."""
    return (run / FOLDERS[stage] / ".inputs.json" if stage in FOLDERS else run / stage).exists()


def ended(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def alive_in(group: int) -> list[int]:
    """Processes of a group, the dead that nobody has asked for left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, of = path.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def orphans_of(group: int, within_s: float = 2.0) -> int:
    """How many processes of a command are still there some time after it has ended; they are ended then."""
    deadline = time.monotonic() + within_s
    while (left := alive_in(group)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


def send(pid: int, number: int) -> None:
    """Ctrl-C reaches everything that a terminal runs; a kill only the one that is named."""
    if number == signal.SIGINT:
        os.killpg(pid, number)
    else:
        os.kill(pid, number)


def obey(order: dict) -> dict:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            child(order, out.fileno(), err.fileno())
        rc, begun, sent = None, None if order.get("stage") else time.monotonic(), False
        while rc is None:
            time.sleep(0.005)
            rc = ended(pid)
            if begun is None and has_begun(Path(order["run"]), order["stage"]):
                begun = time.monotonic()
            due = begun is not None and order.get("signal") and time.monotonic() - begun >= order["after_s"]
            if rc is None and due and not sent:
                send(pid, order["signal"])
                sent = True
        orphans = orphans_of(pid)
        out.seek(0)
        err.seek(0)
        return {
            "rc": rc,
            "stdout": out.read().decode(),
            "stderr": err.read().decode(errors="replace"),
            "orphans": orphans,
        }


def main() -> None:
    warm_up()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(obey(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
