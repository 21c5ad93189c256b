"""One block of questions in a process of its own: load one model, warm up, answer, say how much memory it took.

Only the runner (`mpa_edge.bench.device.runner`) starts it, and it ends when the runner does. It runs on the device,
with Python 3.10 or newer.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import queue
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.artifact import ARTIFACT, Artifact, read_artifact
from mpa_edge.bench.device.memory import Watcher, as_values
from mpa_edge.bench.device.page_cache import drop
from mpa_edge.bench.device.protocol import JobOrder, Line, Step, from_json, to_line
from mpa_edge.bench.device.runner import read_questions
from mpa_edge.errors import MpaError
from mpa_edge.images.folder import open_image
from mpa_edge.types import VLM, Drop, Reply, Request
from mpa_edge.vlm import RUNTIMES, load

if TYPE_CHECKING:
    from PIL.Image import Image

STDIN = 0
# the host has opened every picture under the cap of its run already; no recipe may have a higher one than this
MAX_PIXELS = 2 * 89_478_485
ONNX, LLAMA = {"onnxruntime": "onnxruntime"}, {"llama_cpp": "llama-cpp-python"}
# format -> module -> what people call it
RUNTIME_MODULES = {"onnx": ONNX, "gguf": LLAMA, "hybrid": ONNX | LLAMA}


class Link:
    """Lines to the runner. Each is on its disk before the work goes on; where the runner ends, so does this process."""

    def __init__(self, descriptor: int) -> None:
        self._out, self._noted = descriptor, queue.SimpleQueue[None]()
        self.task: dict[str, Any] = json.loads(_read_line(STDIN))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while os.read(STDIN, 1):
            self._noted.put(None)
        os._exit(1)

    def say(self, kind: str, **values: Any) -> None:
        """One line; back when the runner has noted it."""
        line = Line(kind, str(self.task["variant"]), int(self.task["block"]), values)
        rest = to_line(line).encode()
        while rest:
            rest = rest[os.write(self._out, rest) :]
        self._noted.get()


def _read_line(descriptor: int) -> bytes:
    """Everything up to the end of a line; nothing comes behind it before it was answered."""
    found = bytearray()
    while not found.endswith(b"\n") and (part := os.read(descriptor, 2**16)):
        found += part
    return bytes(found)


def work(bundle: Path, descriptor: int) -> int:
    """Do the block that stands on stdin; lines go to a descriptor. The exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the runner decides
    link = Link(descriptor)
    order, variant = from_json(json.dumps(link.task["order"])), str(link.task["variant"])
    with Watcher() as memory:
        try:
            pin(order.cores)
            questions = read_questions(bundle)
            model, said = load_model(bundle, order, variant, cold=bool(link.task["cold"]))
        except Exception as error:  # whatever a damaged model makes a library raise, it is said and not thrown
            link.say("failed", reason=reason_of(error))
            return 1
        link.say("loaded", **said)
        warm_up(link, model, bundle, order, questions)
        ask(link, model, bundle, order, questions)
    link.say("memory", **as_values(memory), uptime_s=uptime_s())
    return 0


def reason_of(error: BaseException) -> str:
    """One line for people.

    >>> reason_of(MpaError("the prompt is too long: shorten it")), reason_of(MemoryError()), reason_of(KeyError("a"))
    ('the prompt is too long: shorten it', 'out of memory', "KeyError: 'a'")
    """
    if isinstance(error, MemoryError):
        return "out of memory"
    said = " ".join(str(error).split())[:400]
    return said if isinstance(error, MpaError) else f"{type(error).__name__}: {said}"


def uptime_s() -> float:
    """Seconds since the device was started, sleep included: no clock that somebody may set."""
    return round(time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)), 4)


# --- the model --------------------------------------------------------------------------------------------------------


def pin(cores: str | None) -> None:
    """Keep this process on some cores. MpaError where the device does not have them."""
    if cores is None:
        return
    wanted = parse_cores(cores)
    usable = os.sched_getaffinity(0)
    if not wanted <= usable:
        have = ",".join(map(str, sorted(usable)))
        raise MpaError(f"cores {cores} cannot be used here, only {have}: change cpu.cores of the target")
    os.sched_setaffinity(0, wanted)


def parse_cores(text: str) -> set[int]:
    """Cores as taskset writes them. MpaError where that is no list of cores.

    >>> sorted(parse_cores("4-6,9"))
    [4, 5, 6, 9]
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise MpaError(f"cpu.cores is '{text}': write cores as 4-7 or 0,2")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def load_model(bundle: Path, order: JobOrder, variant: str, *, cold: bool) -> tuple[VLM, dict[str, Any]]:
    """A model that is ready to answer, and what is to be said of it.

    With `cold` its files leave the page cache first. The runtime's own libraries are in memory before the clock starts.
    """
    folder = inside(bundle, order.variants[variant])
    artifact = read_artifact(folder)
    import_runtime(artifact.format)
    was_cold = drop(folder / name for name in artifact.files.values()) if cold else False
    began_s, started = uptime_s(), time.perf_counter()
    model = load(str(folder), name=variant, threads=order.threads)
    load_s = time.perf_counter() - started
    return model, {
        "load_s": load_s,
        "cold": was_cold,
        "runtime": runtime(artifact),
        "backend": backend(model, artifact),
        "threads": threads(model),
        "warm_up": order.warm_up,
        "uptime_s": began_s,
        "cores": sorted(os.sched_getaffinity(0)),
    }


def inside(bundle: Path, name: str) -> Path:
    """A folder of the bundle. MpaError where an order names one outside of it."""
    folder = (bundle / name).resolve()
    if not folder.is_relative_to(bundle.resolve()) or not (folder / ARTIFACT).is_file():
        raise MpaError(f"the order names a model '{name}' that is not in the bundle: send the bundle again")
    return folder


def import_runtime(format_: str) -> None:
    """Import what runs a format. MpaError where it is missing."""
    for name in (RUNTIMES[format_][0], *RUNTIME_MODULES[format_]):
        importlib.import_module(name)


def runtime(artifact: Artifact) -> str:
    """Libraries with their versions."""
    modules = {name: importlib.import_module(name) for name in RUNTIME_MODULES[artifact.format]}
    return ", ".join(f"{RUNTIME_MODULES[artifact.format][name]} {made.__version__}" for name, made in modules.items())


def backend(model: Any, artifact: Artifact) -> str:
    """What really computes: execution providers of onnxruntime, backends of llama.cpp."""
    used = []
    if artifact.format != "gguf":
        used += model.vision.session.get_providers()[:1]
    if artifact.format != "onnx":
        used.append(llama_backend(model.language.lib))
    return " + ".join(used)


def llama_backend(lib: Any) -> str:
    """Backends that this build of llama.cpp has registered, its accelerator first: all layers go there."""
    info = lib.llama_print_system_info().decode("utf-8", "replace")
    named = [part.split(" : ")[0].strip() for part in info.split("|") if " : " in part]
    others = [name for name in named if name != "CPU"] if lib.llama_supports_gpu_offload() else []
    return "llama.cpp " + ", ".join([*others, "CPU"])


def threads(model: Any) -> int | None:
    """CPU threads that the runtime was given."""
    found = getattr(model, "threads", None) or getattr(getattr(model, "language", None), "threads", None)
    return None if found is None else int(found)


# --- the answers ------------------------------------------------------------------------------------------------------


def warm_up(link: Link, model: VLM, bundle: Path, order: JobOrder, questions: dict[str, Any]) -> None:
    """Answer the block's first questions without counting them. One that fails does so again where it counts."""
    for i in range(order.warm_up if order.steps else 0):
        step = order.steps[i % len(order.steps)]
        with suppress(Exception):
            answer(model, bundle, questions[step.id], step)
        link.say("warm")


def ask(link: Link, model: VLM, bundle: Path, order: JobOrder, questions: dict[str, Any]) -> None:
    """Answer all questions, one by one."""
    for step in order.steps:
        try:
            said = answer(model, bundle, questions[step.id], step)
        except Exception as error:
            link.say("failed", id=step.id, repetition=step.repetition, reason=reason_of(error))
            continue
        link.say("answer", **said)


def answer(model: VLM, bundle: Path, question: dict[str, Any], step: Step) -> dict[str, Any]:
    """One question, greedy, alone.

    Each call opens the picture anew and asks for one answer only: what a model keeps of a picture it keeps for the
    questions of the same call, so that every answer does the whole work and depends on no other.
    """
    image = picture(bundle, question)
    request = Request(image, question["prompt"], int(question["max_new_tokens"]), temperature=0.0)
    reply = model.answer([request])[0]
    return {
        "id": step.id,
        "repetition": step.repetition,
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "tokens": reply.n_tokens,
        "same_pixels": pixels_mark(image) == question["pixels"],
        "uptime_s": uptime_s(),
    } | figures(reply)


def picture(bundle: Path, question: dict[str, Any]) -> Image:
    """The picture of a question, as the host opens it. MpaError where it cannot be read here."""
    opened = open_image(bundle / question["image"], MAX_PIXELS)
    if isinstance(opened, Drop):
        raise MpaError(f"{question['image']}: {opened.reason} {opened.detail}; update Pillow there")
    return opened


def pixels_mark(image: Image) -> str:
    """What tells whether two machines see the same picture: their JPEG libraries may differ."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:16]


def figures(reply: Reply) -> dict[str, float]:
    """The timings that a runtime gives, by metric; what it does not say is left out.

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
