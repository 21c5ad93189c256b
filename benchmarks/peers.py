"""Whole answers of SmolVLM's sizes, against the other programs that run such a model on a CPU.

    python -m venv OV
    OV/bin/pip install optimum-intel[openvino]==2.2.0 nncf==3.4.0 transformers==4.57.6 torch pillow click
    python benchmarks/peers.py run --openvino OV/bin/python --mtmd-cli PROGRAM --work FOLDER
    python benchmarks/report.py

FOLDER keeps checkpoints and exports (6 GB). About 20 minutes to make them, then half an hour of a machine with nothing
else to do. PROGRAM: llama-mtmd-cli of the pinned llama.cpp, as tests/exporters/llama_programs.py compiles it, with -O2.

smolvlm-256m is real_weights.py's (the real decoder, a random vision encoder), smolvlm-500m has random weights
(shapes.py). What they answer means nothing; every answer has the same number of tokens, whatever it says. Two cases: 5
tiles and 32 tokens; 1 tile and 128 tokens. Each case starts one process for each program, which loads the model and
answers once; then they answer in turns, so that all of them meet the same machine, and the median counts. A whole
answer is from an image in memory (a PNG for the programs that take no other) to its last token.

Theirs: transformers.js under node with the files of our onnx-int8; llama.cpp's llama-mtmd-cli at its defaults with our
gguf-q8_0 and the libraries of llama-cpp-python; OpenVINO by optimum-intel's own export and pipeline, weights in int8;
transformers with PyTorch's scaled dot-product attention, in bf16 where the CPU multiplies it. At 8 bits or more all
keep what the model knows (real_weights.py), so whole answers may be compared.

Decode bound: bytes of weights that a token reads (the cache is small beside them) over the bandwidth with which as many
threads read 1 GB, measured between the answers.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
from common import DOCS, ROOT, Document, command, machine, read, write

QUESTION = "What is the value of the purple bar, and which bar is the highest one of all?"
TILE_PX, TILES = 512, (5, 1)
TOKENS = {5: 32, 1: 128}
CONTEXT_TOKENS = 2048
MODELS = ("smolvlm-256m", "smolvlm-500m")
PACKAGES = ("onnxruntime", "onnxruntime-ep-openvino", "llama-cpp-python", "torch", "transformers")
LOCAL = ("--work", "--out", "--openvino", "--mtmd-cli")
OURS = ("onnx-int8", "gguf-q8_0", "hybrid-int8-q8_0", "hybrid-fp16-q8_0")
WORKERS: dict[str, Callable[..., Any]] = {}
Answer = Callable[[int], Document]


# --- the programs: each loads a model and gives a function that answers with n tokens ---------------------------------


def worker(function: Callable[..., Any]) -> Callable[..., Any]:
    WORKERS[function.__name__] = function
    return function


@worker
def ours(folder: Path, threads: int, image: Path, accelerator: str = "cpu") -> Answer:
    """An export, as `mpa-edge bench` runs it."""
    from mpa_edge.types import Request
    from mpa_edge.vlm import load

    model, pixels = load(str(folder), name="it", threads=threads, accelerators=(accelerator,)), opened(image)

    def answer(n: int) -> Document:
        (reply,) = model.answer([Request(pixels.copy(), QUESTION, n)])
        assert reply.timing is not None
        names = ("total_s", "ttft_s", "vision_s", "prefill_s")
        return {name: getattr(reply.timing, name) for name in names} | {"n_tokens": reply.n_tokens}

    return answer


@worker
def torch(folder: Path, threads: int, image: Path, dtype: str) -> Answer:
    """transformers, as its documentation runs a model."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(threads)
    options = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    model = AutoModelForImageTextToText.from_pretrained(str(folder), **options).eval()
    return generating(model, AutoProcessor.from_pretrained(str(folder)), image)


@worker
def openvino(folder: Path, threads: int, image: Path) -> Answer:
    """OpenVINO by optimum-intel."""
    from optimum.intel import OVModelForVisualCausalLM
    from transformers import AutoProcessor

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": ""}
    model = OVModelForVisualCausalLM.from_pretrained(str(folder), ov_config=options)
    return generating(model, AutoProcessor.from_pretrained(str(folder.with_name(f"{folder.name}-source"))), image)


def generating(model: Any, processor: Any, image: Path) -> Answer:
    """Of a model with transformers' interface."""
    pixels = opened(image)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]

    class Clock:
        def __init__(self) -> None:
            self.stamps: list[float] = []  # the first one is the prompt

        def put(self, _: Any) -> None:
            self.stamps.append(time.perf_counter())

        def end(self) -> None:
            pass

    def answer(n: int) -> Document:
        clock, started = Clock(), time.perf_counter()
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=text, images=[pixels], return_tensors="pt")
        options = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "streamer": clock}
        tokens = model.generate(**inputs, **options)
        total_s = time.perf_counter() - started
        made = tokens.shape[1] - inputs["input_ids"].shape[1]
        return {
            "total_s": total_s,
            "ttft_s": clock.stamps[1] - started,
            "n_tokens": made,
            "tiles": inputs["pixel_values"].shape[1],
        }

    return answer


@worker
def mtmd_cli(folder: Path, threads: int, image: Path, program: str, libraries: str) -> Answer:
    """llama.cpp's own program, a process for each answer: its clock starts when the model is loaded.

    It ends before the thread that writes its log has come to the last lines, so that nothing says when decoding began.
    """
    model, mmproj = (str(next(folder.glob(f"{name}*.gguf"))) for name in ("model", "mmproj"))
    words = [program, "-m", model, "--mmproj", mmproj, "--image", str(image), "-p", QUESTION, "--jinja"]
    words += ["-t", str(threads), "-c", str(CONTEXT_TOKENS), "--temp", "0", "--ignore-eos"]
    environment = os.environ | {"LD_LIBRARY_PATH": libraries}

    def answer(n: int) -> Document:
        command = ["/usr/bin/time", "-f", "peak %M", *words, "-n", str(n)]
        run = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        assert run.stderr is not None
        log, started = "", 0.0
        for line in run.stderr:
            if not started and "encoding mtmd batch" in line:
                started = time.perf_counter()
            log += line
        ended, encoded_ms = time.perf_counter(), re.findall(r"batch encoding done in (\d+) ms", log)
        if run.wait() or not encoded_ms:
            raise click.ClickException(log[-2000:])
        [peak_kb] = re.findall(r"^peak (\d+)", log, re.M)
        return {
            "total_s": ended - started,
            "vision_s": sum(map(int, encoded_ms)) / 1000,
            "n_tokens": n,
            "peak_bytes": 1024 * int(peak_kb),
        }

    return answer


def opened(image: Path) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(image.read_bytes())).convert("RGB")


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def bandwidth(threads: int) -> float:
    """Bytes a second at which threads of numpy read 1 GB: their sum is limited by memory."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    parts = [np.ones(2**27 // threads, np.int64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        best = 0.0
        for _ in range(5):
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - started))
    return best


@click.group()
def main() -> None:
    """See the head of this file."""


@main.command(hidden=True)
@click.argument("kind")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("threads", type=int)
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("rest", nargs=-1)
def work(kind: str, folder: Path, threads: int, image: Path, rest: tuple[str, ...]) -> None:
    """Answer with as many tokens as each line of standard input says."""
    answer = WORKERS[kind](folder, threads, image, *rest)
    for line in sys.stdin:
        print(json.dumps({"peak_bytes": peak_bytes()} | answer(int(line))), flush=True)


# --- models -----------------------------------------------------------------------------------------------------------


def prepare(place: Path, models: Iterable[str], openvino_python: str) -> None:
    """Checkpoints, exports and images: `MODEL-TILES` with `exports`, `MODEL-TILES-openvino`, `TILES.png`."""
    from PIL import Image

    place.mkdir(parents=True, exist_ok=True)
    for tiles in TILES:
        side = TILE_PX * (2 if tiles == 5 else 1)
        Image.effect_noise((side, side), 80).convert("RGB").save(place / f"{tiles}.png", compress_level=1)
    for name in models:
        if not (place / name / "processor_config.json").is_file():
            checkpoint(place / name, name)
        for tiles in TILES:
            folder = place / f"{name}-{tiles}"
            if not folder.exists():
                shutil.copytree(place / name, folder, copy_function=os.link)
                replace(folder / "processor_config.json", with_longest_edge(TILE_PX * (2 if tiles == 5 else 1)))
            export(folder, tiles)
            export_openvino(folder, openvino_python)


def checkpoint(folder: Path, name: str) -> None:
    import real_weights
    import shapes

    if name == "smolvlm-256m":
        real_weights.build(real_weights.fetch(folder.parent), folder, dither=0.0, vision_layers=12)
    else:
        shapes.build(name, folder)


def replace(path: Path, change: Callable[[Document], Document]) -> None:
    """Write a JSON document anew, not into the file that other folders share."""
    document = change(json.loads(path.read_text()))
    path.unlink()
    path.write_text(json.dumps(document))


def with_longest_edge(pixels: int) -> Callable[[Document], Document]:
    def change(config: Document) -> Document:
        config["image_processor"]["size"] = {"longest_edge": pixels}
        return config

    return change


def ours_for(tiles: int) -> tuple[str, ...]:
    """llama.cpp has its own way to split an image, which gives four tiles at least."""
    return tuple(name for name in OURS if tiles > 1 or not name.startswith("gguf"))


def scheme_of(name: str) -> Any:
    """A scheme of the product; with the vision encoder in fp16, which OpenVINO computes in bf16 where the CPU can."""
    from mpa_edge.config.library import load_scheme

    if name != "hybrid-fp16-q8_0":
        return load_scheme(name)
    return load_scheme("hybrid-int8-q8_0").model_copy(
        update={"name": name, "components": {"vision": "fp16", "language": "q8_0"}}
    )


def export(folder: Path, tiles: int) -> None:
    """Our exports, without end tokens (each answer has the asked length) and without verification."""
    from mpa_edge.artifact import write_artifact
    from mpa_edge.exporters.build import BuildContext, build
    from mpa_edge.exporters.publish.layout import write_layout
    from mpa_edge.exporters.source import open_source
    from mpa_edge.runs.files import make_folder

    source, exports = open_source(str(folder)), Path(f"{folder}-exports")
    for name in ours_for(tiles):
        if not (exports / name / "artifact.json").is_file():
            made, scheme = make_folder(exports / name), scheme_of(name)
            build(BuildContext(source, made, make_folder(exports / "parts")), scheme)
            artifact = write_layout(source, scheme, made, None, CONTEXT_TOKENS, None)
            tokens = artifact.tokens.model_copy(update={"ends": ()})
            write_artifact(made, artifact.model_copy(update={"tokens": tokens}))


def export_openvino(folder: Path, python: str) -> None:
    """Weights of 8 bits, from a copy of the checkpoint in the form of transformers 4: it would ignore the rope base."""
    out, source = (folder.with_name(f"{folder.name}-openvino{end}") for end in ("", "-source"))
    if (out / "openvino_vision_embeddings_model.bin").is_file():
        return
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(folder, source, copy_function=os.link)

    def older(config: Document) -> Document:
        config["text_config"]["rope_theta"] = config["text_config"]["rope_parameters"]["rope_theta"]
        return config

    def split(config: Document) -> Document:
        images = config.pop("image_processor") | {"processor_class": config["processor_class"]}
        (source / "preprocessor_config.json").write_text(json.dumps(images))
        return config

    def words(config: Document) -> Document:
        more = {"additional_special_tokens": config.pop("extra_special_tokens", [])}
        return config | more | {"tokenizer_class": "PreTrainedTokenizerFast"}

    replace(source / "config.json", older)
    replace(source / "processor_config.json", split)
    replace(source / "tokenizer_config.json", words)
    words = ["export", "openvino", "-m", str(source), "--task", "image-text-to-text", "--weight-format", "int8"]
    command = [python, "-m", "optimum.commands.optimum_cli", *words, str(out)]
    subprocess.run(command, check=True, stdout=sys.stderr)


# --- measuring --------------------------------------------------------------------------------------------------------


def programs(place: Path, name: str, tiles: int, threads: int, openvino_python: str, cli: Path) -> dict[str, list[str]]:
    """Program -> the command of its worker."""
    import llama_cpp

    from tests.exporters.javascript import client

    folder, image = place / f"{name}-{tiles}", place / f"{tiles}.png"
    exports, libraries = Path(f"{folder}-exports"), Path(llama_cpp.__file__).parent / "lib"
    script = shutil.copy(Path(__file__).with_name("peers.mjs"), client() / "peers.mjs")

    def python(kind: str, model: Path, *rest: str, program: str = sys.executable) -> list[str]:
        return [program, __file__, "work", kind, str(model), str(threads), str(image), *rest]

    found = {f"mpa-edge, {scheme}": python("ours", exports / scheme) for scheme in ours_for(tiles)}
    with_openvino = "mpa-edge, hybrid-fp16-q8_0"
    found[f"{with_openvino}, OpenVINO"] = [*found.pop(with_openvino), "openvino"]
    found["transformers.js"] = ["node", str(script), str(exports / "onnx-int8"), str(threads), str(image), QUESTION]
    if tiles > 1:
        found["llama-mtmd-cli"] = python("mtmd_cli", exports / "gguf-q8_0", str(cli.absolute()), str(libraries))
    found["OpenVINO"] = python("openvino", Path(f"{folder}-openvino"), program=openvino_python)
    return found | {"PyTorch": python("torch", folder, precision())}


def precision() -> str:
    """The quicker one for PyTorch on this CPU."""
    from real_weights import cpu_flags

    return "bfloat16" if {"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_flags()) else "float32"


@contextmanager
def started(words: list[str], threads: int) -> Iterator[Answer]:
    """A worker as a function."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    run = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdin is not None
    assert run.stdout is not None
    lines, given = run.stdout, run.stdin

    def answer(n: int) -> Document:
        print(n, file=given, flush=True)
        for line in lines:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise click.ClickException(f"{words} ended")

    try:
        yield answer
    finally:
        run.kill()
        run.wait()


def measure(commands: dict[str, list[str]], threads: int, tiles: int, rounds: int) -> tuple[Document, float]:
    """(program -> medians, bytes a second that were read meanwhile)."""
    n, found, speeds = TOKENS[tiles], {name: [] for name in commands}, []
    with ExitStack() as stack:
        ask = {name: stack.enter_context(started(words, threads)) for name, words in commands.items()}
        for number in range(rounds + 1):
            for name, answer in ask.items():
                if not number and name == "llama-mtmd-cli":  # each answer is a process of its own
                    continue
                row = answer(n)
                if row["n_tokens"] != n or row.get("tiles", tiles) != tiles:
                    raise click.ClickException(f"{name} did not answer with {n} tokens about {tiles} tiles: {row}")
                print(f"{threads} threads, {tiles} tiles, {name}: {row['total_s']:.2f} s", file=sys.stderr)
                if number:
                    found[name].append(row)
            speeds.append(bandwidth(threads))
    names = ("total_s", "ttft_s", "vision_s", "prefill_s", "peak_bytes")
    return {
        program: {name: round(statistics.median(row[name] for row in rows), 4) for name in names if name in rows[0]}
        for program, rows in found.items()
    }, statistics.median(speeds)


def bytes_a_token(exports: Path, tiles: int) -> dict[str, int]:
    """Scheme -> bytes of the file with the decoder; the cache is small beside it."""
    from mpa_edge.artifact import read_artifact

    sizes = {}
    for scheme in ours_for(tiles):
        files = read_artifact(exports / scheme).files
        path = exports / scheme / files["decoder" if "decoder" in files else "language"]
        sizes[scheme] = sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))
    return sizes


@main.command()
@click.option("--openvino", "openvino_python", required=True, help="Python with optimum-intel.")
@click.option("--mtmd-cli", "cli", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--work", "place", type=click.Path(path_type=Path), required=True, help="Keeps what is made.")
@click.option("--model", "models", multiple=True, default=MODELS, show_default=True)
@click.option("--threads", "counts", multiple=True, default=(1, 2), show_default=True)
@click.option("--rounds", default=2, show_default=True, help="Answers that count, after one that does not.")
@click.option("--out", type=click.Path(path_type=Path), default=DOCS / "peers.json", show_default=True)
def run(
    openvino_python: str,
    cli: Path,
    place: Path,
    models: tuple[str, ...],
    counts: tuple[int, ...],
    rounds: int,
    out: Path,
) -> None:
    """Make what is missing, measure, and write it down case by case."""
    import bench
    from real_weights import cpu_flags

    sys.path.insert(0, str(ROOT))
    prepare(place, models, openvino_python)
    here = machine() | {"flags": cpu_flags()}
    for name in models:
        for threads in counts:
            for tiles in TILES:
                ticks = bench.cpu_ticks()
                rows, speed = measure(
                    programs(place, name, tiles, threads, openvino_python, cli), threads, tiles, rounds
                )
                spent = [after - before for before, after in zip(ticks, bench.cpu_ticks(), strict=True)]
                case = {
                    "command": command(
                        "peers.py", sys.argv[1:], without=("--work", "--out", "--openvino", "--mtmd-cli")
                    ),
                    "programs": rows,
                    "bytes_per_s": speed,
                    "bytes_a_token": bytes_a_token(place / f"{name}-{tiles}-exports", tiles),
                    "rounds": rounds,
                    "machine": here,
                    "versions": {one: importlib.metadata.version(one) for one in PACKAGES},
                    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                    "stolen_share": round(spent[7] / max(1, sum(spent[:8])), 4),
                }
                write(out, read(out) | {f"{name}, {threads}, {tiles}": case})


if __name__ == "__main__":
    main()
