"""One block of questions in a process of its own: load one model, warm up, answer, report the peak memory.

The runner (`mpa_edge.bench.device.runner`) starts it, and it ends when the runner does. It runs on the device, with
Python 3.10 or newer.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mpa_edge.artifact import ARTIFACT, Artifact, read_artifact
from mpa_edge.bench.device.memory import PeakMemory, Watcher, drop_from_page_cache, gpu_bytes, status_bytes
from mpa_edge.bench.device.protocol import (
    NEXT_TO_NOTHING_S,
    SAMPLE_S,
    JobOrder,
    Line,
    Step,
    content_id,
    from_json,
    parse_cores,
    read_questions,
    to_line,
)
from mpa_edge.config.llama_cpp import LlamaCpp
from mpa_edge.errors import MpaError
from mpa_edge.images.folder import open_image
from mpa_edge.types import VLM, Drop, Reply, Request
from mpa_edge.vlm import RUNTIMES, load

if TYPE_CHECKING:
    from PIL.Image import Image

MANIFEST = "manifest.json"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# the highest limit that a recipe can set: the host has checked every image against the run's own limit
MAX_PIXELS = 2 * 89_478_485
ONNX, LLAMA = {"onnxruntime": "onnxruntime"}, {"llama_cpp": "llama-cpp-python"}
# format -> module -> name of its package
RUNTIME_MODULES = {"onnx": ONNX, "gguf": LLAMA, "hybrid": ONNX | LLAMA}


class Link:
    """The socket to the runner: each line is on its disk before work continues; this process ends with the runner."""

    def __init__(self, descriptor: int) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        self._socket = socket.socket(fileno=descriptor)
        self._incoming = self._socket.makefile("rb")
        self.task: dict[str, Any] = json.loads(self._incoming.readline())

    def say(self, kind: str, **values: Any) -> None:
        """Send one line; returns when the runner has it on disk."""
        line = Line(kind, str(self.task["variant"]), int(self.task["block"]), values)
        self._socket.sendall(to_line(line).encode())
        if not self._incoming.read(1):
            os._exit(1)  # the runner has ended


def work(bundle: Path, descriptor: int) -> int:
    """Answer the block of the task that comes through the socket `descriptor`. The exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the runner decides
    link = Link(descriptor)
    order, variant = from_json(json.dumps(link.task["order"])), str(link.task["variant"])
    if link.task["prepare"]:
        return prepare(bundle, link, order, variant)
    with Watcher() as memory:
        try:
            pin(order.cores)
            questions = read_questions(bundle)
            model, about = load_model(bundle, order, variant, cold=bool(link.task["cold"]))
        except Exception as error:  # a damaged model makes libraries raise anything
            link.say("failed", reason=reason_of(error))
            return 1
        link.say("loaded", **about)
        for i in range(order.warm_up if order.steps else 0):
            step = order.steps[i % len(order.steps)]
            with suppress(Exception):  # it fails again where it counts
                answer(model, bundle, questions[step.id], step)
            link.say("warm")
        if order.soak_s and soak(link, lambda step: answer(model, bundle, questions[step.id], step), order):
            return 1
        for step in () if order.soak_s else order.steps:
            try:
                values = answer(model, bundle, questions[step.id], step)
            except Exception as error:
                link.say("failed", id=step.id, repetition=step.repetition, reason=reason_of(error))
            else:
                link.say("answer", **values)
    link.say("memory", **memory.values(), uptime_s=uptime_s())
    return 0


def prepare(bundle: Path, link: Link, order: JobOrder, variant: str) -> int:
    """Build what the accelerator builds of the model, and find out what computes one answer. The exit status.

    A process of its own: neither time nor memory of it may count. All engines are complete after one answer.
    """
    step = order.steps[-1]
    try:
        pin(order.cores)
        question = read_questions(bundle)[step.id]
        with TemporaryDirectory(prefix="mpa-edge-") as folder:
            started = time.perf_counter()
            model: Any = load_model(bundle, order, variant, cold=False, profile=Path(folder))[0]
            answer(model, bundle, question, step)
            if not hasattr(model, "profile_of"):  # its runtime reports nothing
                link.say("warm")
                return 0
            seconds, engines = (
                time.perf_counter() - started,
                getattr(getattr(model, "execution", None), "engines", None),
            )
            usage = model.profile_of(request_of(bundle, question))
    except Exception as error:
        link.say("failed", reason=reason_of(error))
        return 1
    build_s = None
    if engines:
        from mpa_edge.vlm.onnxruntime.engines import build_seconds

        build_s = build_seconds(engines, seconds)
    own = {"software": usage.is_software, "build_s": build_s, "gpu_bytes": usage.gpu_bytes or gpu_bytes()}
    link.say("used", **(asdict(usage) | own))
    return 0


def soak(link: Link, ask: Callable[[Step], dict[str, Any]], order: JobOrder) -> int:
    """Ask the steps in turn until `soak_s` is over, and say a sample every second, or after each answer that is longer.

    A short soak has a hundred samples. Returns the exit status: 1 where an answer failed, which ends it.
    """
    said: dict[str, str] = {}
    every_s = min(SAMPLE_S, order.soak_s / 100)
    since_s, left_s = uptime_s(), order.soak_s
    tokens, changed, latencies_s = 0, 0, list[float]()
    for step in itertools.cycle(order.steps):
        started = time.perf_counter()
        try:
            values = ask(step)
        except Exception as error:
            link.say("failed", reason=reason_of(error))
            return 1
        latencies_s.append(round(time.perf_counter() - started, 5))
        tokens += int(values["tokens"])
        changed += said.setdefault(step.id, values["text"]) != values["text"]
        now_s = uptime_s()
        if now_s - since_s < min(every_s, left_s):
            continue
        left_s -= now_s - since_s
        memory = PeakMemory()
        memory.add(status_bytes())
        link.say(
            "sample",
            uptime_s=now_s,
            seconds=round(now_s - since_s, 4),
            tokens=tokens,
            latencies_s=latencies_s,
            rss_bytes=memory.now_bytes,
            changed=changed,
        )
        if left_s < NEXT_TO_NOTHING_S:
            return 0
        since_s, tokens, changed, latencies_s = uptime_s(), 0, 0, []
    return 0


def reason_of(error: BaseException) -> str:
    """An error in one line.

    >>> reason_of(MpaError("the prompt is too long: shorten it")), reason_of(MemoryError()), reason_of(KeyError("a"))
    ('the prompt is too long: shorten it', 'out of memory', "KeyError: 'a'")
    """
    if isinstance(error, MemoryError):
        return "out of memory"
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, MpaError) else f"{type(error).__name__}: {text}"


def uptime_s() -> float:
    """Seconds since boot, sleep included; unlike the wall clock, nobody can set it."""
    return round(time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)), 4)


# --- the model --------------------------------------------------------------------------------------------------------


def pin(cores: str | None) -> None:
    """Pin this process to cores. MpaError where the device does not have them."""
    if cores is None:
        return
    wanted = parse_cores(cores)
    usable = os.sched_getaffinity(0)
    if not wanted <= usable:
        have = ",".join(map(str, sorted(usable)))
        raise MpaError(f"cores {cores} are not available here, only {have}: change cpu.cores of the target")
    os.sched_setaffinity(0, wanted)


def load_model(
    bundle: Path, order: JobOrder, variant: str, *, cold: bool, profile: Path | None = None
) -> tuple[VLM, dict[str, Any]]:
    """A loaded model, and the values of its `loaded` line. `profile`: see `vlm.load`.

    With `cold` its files are dropped from the page cache first. The runtime's own libraries are in memory before the
    clock starts. MpaError where the order names a folder outside of the bundle, or the runtime is missing.
    """
    folder = (bundle / order.variants[variant]).resolve()
    if not folder.is_relative_to(bundle.resolve()) or not (folder / ARTIFACT).is_file():
        raise MpaError(f"the order names a model '{order.variants[variant]}' that is not in the bundle: send it again")
    artifact = read_artifact(folder)
    packages = RUNTIME_MODULES[artifact.format]
    importlib.import_module(RUNTIMES[artifact.format][0])
    versions = [f"{package} {importlib.import_module(name).__version__}" for name, package in packages.items()]
    was_cold = drop_from_page_cache(folder / name for name in artifact.files.values()) if cold else False
    began_s, started = uptime_s(), time.perf_counter()
    model = load(
        str(folder),
        name=variant,
        threads=order.threads,
        accelerators=order.accelerators,
        provider_options=order.provider_options,
        profile=profile,
        llama_cpp=LlamaCpp.model_validate(order.llama_cpp),
    )
    load_s = time.perf_counter() - started
    return model, {
        "load_s": load_s,
        "cold": was_cold,
        "runtime": ", ".join(versions),
        "backend": backend(model, artifact),
        "threads": getattr(model, "threads", None) or getattr(getattr(model, "language", None), "threads", None),
        "warm_up": order.warm_up,
        "uptime_s": began_s,
        "content": content_of(bundle),
        "cores": sorted(os.sched_getaffinity(0)),
    }


def content_of(bundle: Path) -> str | None:
    """`content_id` of this bundle, by its manifest; None where that is missing or damaged."""
    try:
        files = json.loads((bundle / MANIFEST).read_bytes())["files"]
        return content_id({name: str(file["sha256"]) for name, file in files.items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def backend(model: Any, artifact: Artifact) -> str:
    """What computes: the first execution provider of onnxruntime, the device of llama.cpp."""
    used = []
    if artifact.format != "gguf":
        used += model.vision.session.get_providers()[:1]
    if artifact.format != "onnx":
        used.append(model.language.offload.backend)
    return " + ".join(used)


# --- the answers ------------------------------------------------------------------------------------------------------


def answer(model: VLM, bundle: Path, question: dict[str, Any], step: Step) -> dict[str, Any]:
    """One question, greedy, in a call of its own: the values of its `answer` line.

    Each call opens the image again, because a model reuses an image within one call: so every answer does all of the
    work and depends on no other. MpaError where the image cannot be read here.
    """
    request = request_of(bundle, question)
    reply = model.answer([request])[0]
    return {
        "id": step.id,
        "repetition": step.repetition,
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "tokens": reply.n_tokens,
        "same_pixels": pixel_hash(request.image) == question["pixels"],
        "uptime_s": uptime_s(),
    } | figures(reply)


def request_of(bundle: Path, question: dict[str, Any]) -> Request:
    """A question with its image, greedy. MpaError where the image cannot be read here."""
    image = open_image(bundle / question["image"], MAX_PIXELS)
    if isinstance(image, Drop):
        raise MpaError(f"{question['image']}: {image.reason} {image.detail}; update Pillow on the device")
    return Request(image, question["prompt"], int(question["max_new_tokens"]), temperature=0.0)


def pixel_hash(image: Image) -> str:
    """Hash of the decoded pixels, to compare two machines: their JPEG libraries may differ."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:16]


def figures(reply: Reply) -> dict[str, float]:
    """The timings that a runtime reports, by metric; what it does not report is left out.

    >>> from mpa_edge.types import Timing
    >>> figures(Reply("a b c", "stop", 3, Timing(total_s=1.5, ttft_s=0.5, decode_s=1.0)))
    {'ttft_s': 0.5, 'total_s': 1.5, 'tpot_s': 0.5, 'tokens_per_s': 2.0}
    """
    timing = reply.timing
    if timing is None:
        return {}
    found = {
        "preprocess_s": timing.preprocess_s,
        "vision_encode_s": timing.vision_s,
        "prefill_s": timing.prefill_s,
        "ttft_s": timing.ttft_s,
        "total_s": timing.total_s,
    }
    known = {name: value for name, value in found.items() if value is not None}
    if timing.decode_s and reply.n_tokens > 1:
        steps = reply.n_tokens - 1
        known |= {"tpot_s": timing.decode_s / steps, "tokens_per_s": steps / timing.decode_s}
    return known
