"""What the tests of a llama-server's job ask, and what comes back."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from mpa_edge.bench.device.protocol import JobOrder, Line, Step, read_lines
from mpa_edge.bench.host.bundle import Bundle, Question, make_bundle
from mpa_edge.bench.host.llama_server_run import LlamaServerRun
from mpa_edge.bench.transports.transport import Transport
from mpa_edge.nursery.render import pictures
from tests.bench.bundles import plain_order
from tests.vlm.llama_exported import gguf_folder

ASKED = ("How many bars are there?", "Which bar is highest?", "What is the value of the purple bar?")
FAULTS = {"boom": "What is it? (boom)", "hang": "What is it? (hang)", "long": "What is it? " * 400}
N_PICTURES = 2
IDS = tuple(f"{n}-{i}" for n in range(N_PICTURES) for i in range(len(ASKED)))


@functools.cache
def bundle() -> Bundle:
    """The built-in student twice: in 8 bits as the artifact, in 16 as base."""
    folder = Path(tempfile.mkdtemp(prefix="mpa-edge-llama-server-"))
    (folder / "images").mkdir()
    asked = []
    for n, picture in enumerate(pictures(N_PICTURES, 99, "target")):
        picture.image.save(folder / "images" / f"{n}.png")
        asked += [
            Question(id=f"{n}-{i}", image=f"{n}.png", prompt=text, max_new_tokens=12) for i, text in enumerate(ASKED)
        ]
    asked += [Question(id=name, image="0.png", prompt=text, max_new_tokens=4) for name, text in FAULTS.items()]
    return make_bundle(
        folder=folder / "bundle",
        artifact=gguf_folder("student", "q8_0"),
        base=gguf_folder("student"),
        questions=asked,
        images=folder / "images",
        order=plain_order(asked, base=True),
    )


def order(
    *ids: str,
    variants: tuple[str, ...] = ("artifact",),
    repetitions: int = 1,
    timeout_s: float = 60.0,
    cores: str | None = None,
) -> JobOrder:
    steps = [Step(name, one, n) for n in range(repetitions) for name in variants for one in ids]
    return JobOrder(dict(bundle().manifest.variants), tuple(steps), threads=1, cores=cores, answer_timeout_s=timeout_s)


def ask(
    transport: Transport, asked: JobOrder, out: Path, server: str | Path, remote: str | None = None, **more
) -> bool:
    folder = bundle().folder
    run = LlamaServerRun(
        transport,
        asked,
        bundle=folder,
        remote_bundle=remote or str(folder),
        program=str(server),
        job_root=f"{transport.root}/jobs/one",
        **more,
    )
    return run.run(out)


def lines(out: Path) -> list[Line]:
    return list(read_lines(out.read_text(encoding="utf-8").splitlines()))


def answers(out: Path) -> list[tuple[str, str, int]]:
    """Keys of the answers, in their order, as often as they stand there."""
    return [
        (line.variant, line.values["id"], line.values["repetition"]) for line in lines(out) if line.kind == "answer"
    ]
