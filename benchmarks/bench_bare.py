"""The same runtime without the harness: a process that answers the questions of a bundle in the least code.

    python benchmarks/bench_bare.py BUNDLE THREADS

Reads ids of questions from stdin, one a line, and says for each `{"ttft_s", "decode_s", "tokens", "prompt_tokens"}`.
The picture is decoded before the clock starts, as in the harness; its preprocessing is inside, as everybody has to do
it. ONNX: three sessions with the product's options, one call a tile, numpy's argmax. GGUF: llama.cpp's C API, with
mtmd_helper_eval_chunks (what llama-mtmd-cli calls) up to the first token, llama_decode and argmax for the others.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mpa_edge.artifact import Artifact, read_artifact
from mpa_edge.bench.device.runner import read_questions
from mpa_edge.vlm.pixels import prepare
from mpa_edge.vlm.shared.prompts import PromptTokenizer, prompt_text

Loop = Callable[[Image.Image, str, int], tuple[list[float], int]]
"""Picture, question, tokens -> (points in time: start, first token, end; tokens of the prompt)."""
BATCH, KEEP = 512, "num_logits_to_keep"


def onnx_loop(folder: Path, artifact: Artifact, threads: int) -> Loop:
    """Three sessions and a loop."""
    from onnxruntime import InferenceSession, RunOptions

    from mpa_edge.vlm.onnxruntime.sessions import options

    paths: dict[str, str] = {name: str(folder / file) for name, file in artifact.files.items()}
    vision, decoder = (InferenceSession(paths[name], options(threads)) for name in ("vision", "decoder"))
    embed = InferenceSession(paths["embed"], options(1))
    after_each = RunOptions()  # as in the product: what a tile needed goes back
    after_each.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    tokenizer = PromptTokenizer(folder, artifact)
    inputs = {entry.name: entry for entry in decoder.get_inputs()}
    cache_names = [entry.name.replace("present.", "past_key_values.") for entry in decoder.get_outputs()[1:]]
    half = {"tensor(float16)": np.float16}
    dtypes = {name: half.get(inputs[name].type, np.float32) for name in [*cache_names, "inputs_embeds"]}
    shapes = {name: inputs[name].shape for name in cache_names}
    keep = {name: np.ones([1] * len(inputs[name].shape), np.int64) for name in inputs if name == KEEP}

    def answer(image: Image.Image, question: str, n: int) -> tuple[list[float], int]:
        marks = [time.perf_counter()]
        made = prepare(artifact.image, image)
        ids = np.array([tokenizer.encode(prompt_text(artifact, question, made.expansion))], np.int64)
        seen = [
            vision.run(None, {k: a[:, i : i + 1] for k, a in made.pixels.items()}, after_each)[0]
            for i in range(made.pixels["pixel_values"].shape[1])
        ]
        embeds, length = embed.run(None, {"input_ids": ids})[0].copy(), ids.shape[1]
        embeds[0, ids[0] == artifact.tokens.image_id] = np.concatenate(
            [rows.reshape(-1, rows.shape[-1]) for rows in seen]
        )
        cache = {k: np.zeros((1, shape[1], 0, shape[3]), dtypes[k]) for k, shape in shapes.items()}
        places = np.arange(length)[None]
        for i in range(n):
            feeds = {
                "inputs_embeds": embeds.astype(dtypes["inputs_embeds"], copy=False),
                "position_ids": places,
                "attention_mask": np.ones((1, length), np.int64),
            }
            logits, *present = decoder.run(None, {**feeds, **keep, **cache})
            token = int(logits[0, -1].argmax())
            if i == 0:
                marks.append(time.perf_counter())
            cache = dict(zip(cache_names, present, strict=True))
            embeds = embed.run(None, {"input_ids": np.array([[token]])})[0] if i < n - 1 else embeds
            places, length = np.array([[length]]), length + 1
        return [*marks, time.perf_counter()], ids.shape[1]

    return answer


def gguf_loop(folder: Path, artifact: Artifact, threads: int) -> Loop:
    """llama.cpp's own helper and a loop; the model is loaded as the product does it."""
    from mpa_edge.vlm.llama_cpp.model import LlamaCppVLM
    from mpa_edge.vlm.llama_cpp.vision import images_for_mtmd

    vlm = LlamaCppVLM(folder, name="bare", threads=threads)
    lib, mtmd, context, size = vlm.language.lib, vlm.vision.mtmd, vlm.language.context, vlm.language.n_vocabulary
    see, marker = vlm.vision.context, vlm.vision.mtmd.mtmd_default_marker()

    def chosen() -> int:
        return int(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (size,)).argmax())

    def answer(image: Image.Image, question: str, n: int) -> tuple[list[float], int]:
        marks, place = [time.perf_counter()], lib.llama_pos(0)
        image = images_for_mtmd(artifact.image, image)[0]
        data = np.array(image, np.uint8)
        bitmap = mtmd.mtmd_bitmap_init(*image.size, data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        words = prompt_text(artifact, question, marker.decode()).encode()
        text = mtmd.mtmd_input_text(text=words, text_len=len(words), add_special=False, parse_special=True)
        chunks = mtmd.mtmd_input_chunks_init()
        mtmd.mtmd_tokenize(see, chunks, ctypes.byref(text), (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap), 1)
        lib.llama_memory_clear(lib.llama_get_memory(context), False)
        if mtmd.mtmd_helper_eval_chunks(see, context, chunks, 0, 0, BATCH, True, ctypes.byref(place)):
            raise SystemExit("llama.cpp stopped")
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        token = chosen()
        marks.append(time.perf_counter())
        for _ in range(n - 1):
            lib.llama_decode(context, lib.llama_batch_get_one((lib.llama_token * 1)(token), 1))
            token = chosen()
        return [*marks, time.perf_counter()], int(place.value)

    return answer


LOOPS = {"onnx": onnx_loop, "gguf": gguf_loop}


def main(bundle: Path, threads: int) -> None:
    """Answer what stdin asks."""
    folder, questions = bundle / "models" / "artifact", read_questions(bundle)
    artifact = read_artifact(folder)
    answer = LOOPS[artifact.format](folder, artifact, threads)
    for line in sys.stdin:
        question: dict[str, Any] = questions[line.rstrip("\n")]
        image, n = Image.open(bundle / question["image"]).convert("RGB"), int(question["max_new_tokens"])
        (start, first, end), prompt_tokens = answer(image, question["prompt"], n)
        said = {"ttft_s": first - start, "decode_s": end - first, "tokens": n, "prompt_tokens": prompt_tokens}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
