"""The arms of runtime.py: each answers the same question about the same tile, and says where its time went."""

from __future__ import annotations

import contextlib
import ctypes
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mpa_edge.types import Request
from mpa_edge.vlm import load
from mpa_edge.vlm.llama_cpp.model import LlamaCppVLM
from mpa_edge.vlm.llama_cpp.vision import EncodedImage
from mpa_edge.vlm.pixels import prepare
from mpa_edge.vlm.shared.prompts import PromptTokenizer, prompt_text

Times = dict[str, float]
Arm = Callable[[int], Times]
QUESTION = "What is the value of the purple bar, and which bar is the highest one of all? " * 6


def unending(vlm: Any, one_tile: bool = False) -> Any:
    """A VLM that answers with as many tokens as it is asked for; with `one_tile`, pictures are not cut up."""
    changes: dict[str, Any] = {"tokens": vlm.artifact.tokens.model_copy(update={"ends": ()})}
    if one_tile:
        image = vlm.artifact.image
        changes["image"] = {**image, "size": dict(image["max_image_size"])}
    vlm.artifact = vlm.artifact.model_copy(update=changes)
    return vlm


class OneTileLlama(LlamaCppVLM):
    """llama.cpp always cuts an Idefics3 picture up: of its tiles only the overview is encoded and read."""

    def look(self, image: Image.Image, pixels: Any = None) -> EncodedImage:
        """Start tokens, the overview, end token."""
        with self.vision._chunks(image) as chunks:
            started = time.perf_counter()
            pieces = tuple(self.vision._piece(chunk) for chunk in last_three(self, chunks))
            return EncodedImage(pieces, time.perf_counter() - started)


def last_three(vlm: LlamaCppVLM, chunks: Any) -> list[Any]:
    """Text, overview, text."""
    mtmd = vlm.vision.mtmd
    n = mtmd.mtmd_input_chunks_size(chunks)
    return [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(n - 3, n)]


def open_vlm(folder: Path, threads: int, one_tile: bool) -> Any:
    """An exported folder, without end tokens."""
    vlm: Any = load(str(folder), name=folder.name, threads=threads)
    if one_tile and isinstance(vlm, LlamaCppVLM):
        vlm.close()
        vlm = OneTileLlama(folder, name=folder.name, threads=threads)
    return unending(vlm, one_tile)


def vlm_arm(vlm: Any, image: Image.Image, question: str = QUESTION) -> Arm:
    """Our VLM, as it times itself."""

    def run(n: int) -> Times:
        timing = vlm.answer([Request(image, question, n)])[0].timing
        parts = {key: getattr(timing, key) for key in ("preprocess_s", "vision_s", "prefill_s", "decode_s")}
        return {**parts, "total_s": timing.total_s}

    return run


def laps(marks: list[float]) -> Times:
    """vision, prefill and decode from four points in time."""
    vision_s, prefill_s, decode_s = np.diff(marks).tolist()
    return {"vision_s": vision_s, "prefill_s": prefill_s, "decode_s": decode_s, "total_s": marks[-1] - marks[0]}


# --- ONNX Runtime -----------------------------------------------------------------------------------------------------


def onnx_inputs(vlm: Any, image: Image.Image) -> tuple[dict[str, Any], np.ndarray]:
    """(pixels by name, ids (1, n)) of the question."""
    prepared = prepare(vlm.artifact.image, image)
    ids = PromptTokenizer(vlm.folder, vlm.artifact).encode(prompt_text(vlm.artifact, QUESTION, prepared.expansion))
    return dict(prepared.pixels), np.array([ids], np.int64)


def bare_onnx_arm(vlm: Any, image: Image.Image) -> Arm:
    """The least that one can write over the same three sessions."""
    pixels, ids = onnx_inputs(vlm, image)
    vision, embed, decoder = (graph.session for graph in (vlm.vision, vlm.embed, vlm.decoder))
    names = [output.name for output in decoder.get_outputs()][1:]
    cache_names = [name.replace("present.", "past_key_values.") for name in names]
    keep = {"num_logits_to_keep": vlm.decoder.constants["num_logits_to_keep"]} if vlm.decoder.constants else {}
    at = ids[0] == vlm.artifact.tokens.image_id

    def run(n: int) -> Times:
        marks = [time.perf_counter()]
        features = vision.run(None, pixels)[0]
        marks.append(time.perf_counter())
        embeds = embed.run(None, {"input_ids": ids})[0].copy()
        embeds[0, at] = features.reshape(-1, embeds.shape[-1])
        cache, length = vlm.decoder.empty_cache(1), ids.shape[1]
        places = np.arange(length)[None]
        for i in range(n):
            feeds = {"inputs_embeds": embeds, "attention_mask": np.ones((1, length), np.int64), "position_ids": places}
            logits, *present = decoder.run(None, {**feeds, **keep, **cache})
            token = int(logits[0, -1].argmax())
            if i == 0:
                marks.append(time.perf_counter())
            if i < n - 1:
                cache = dict(zip(cache_names, present, strict=True))
                embeds = embed.run(None, {"input_ids": np.array([[token]])})[0]
                places, length = np.array([[length]]), length + 1
        return laps([*marks, time.perf_counter()])

    return run


class NodeArm:
    """The same folder under transformers.js: its generate() is one number, so it is called with 1 and with n tokens."""

    def __init__(self, vlm: Any, image: Image.Image, node: Path, threads: int) -> None:
        self.work = Path(tempfile.mkdtemp())
        pixels, ids = onnx_inputs(vlm, image)
        arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), **pixels}
        folder = vlm.folder.resolve()
        job = {"models": str(folder.parent), "name": folder.name, "threads": threads, "feed": self._files(arrays)}
        (self.work / "job.json").write_text(json.dumps(job))
        self.script = Path(shutil.copy(Path(__file__).with_name("runtime.mjs"), node / f"{self.work.name}.mjs"))
        self.process = subprocess.Popen(
            ["node", str(self.script), str(self.work / "job.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._reply()

    def _files(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        types = {"f": ("float32", np.float32), "i": ("int64", np.int64), "b": ("bool", np.uint8)}
        made = {}
        for name, array in arrays.items():
            label, dtype = types[array.dtype.kind]
            (self.work / name).write_bytes(np.ascontiguousarray(array, dtype).tobytes())
            made[name] = {"type": label, "dims": list(array.shape), "file": str(self.work / name)}
        return made

    def _reply(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("node ended: see its message above")
        found: dict[str, Any] = json.loads(line)
        return found

    def _seconds(self, n: int) -> float:
        self.process.stdin.write(json.dumps({"n": n}) + "\n")
        return float(self._reply()["seconds"])

    def __call__(self, n: int) -> Times:
        first_s, whole_s = self._seconds(1), self._seconds(n)
        return {"vision_and_prefill_s": first_s, "decode_s": whole_s - first_s, "total_s": whole_s}

    def close(self) -> None:
        """End node."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(timeout=60)
        self.script.unlink()
        shutil.rmtree(self.work)


# --- llama.cpp --------------------------------------------------------------------------------------------------------


def bare_llama_arm(vlm: OneTileLlama, image: Image.Image) -> Arm:
    """The least that one can write over llama.cpp's C API, on the same model and context."""
    lib, mtmd, model, see = vlm.language.lib, vlm.vision.mtmd, vlm.language, vlm.vision.context
    before, _, after = prompt_text(vlm.artifact, QUESTION, "\0").partition("\0")
    text = [model.tokenize(before), model.tokenize(after)]
    nothing = mtmd.mtmd_helper_post_decode_callback()

    def read(tokens: list[int]) -> None:
        ids = (lib.llama_token * len(tokens))(*tokens)
        if lib.llama_decode(model.context, lib.llama_batch_get_one(ids, len(ids))):
            raise SystemExit("llama.cpp stopped")

    def words(chunk: Any) -> list[int]:
        n = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        return list(mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(ctypes.c_size_t()))[:n])

    def run(n: int) -> Times:
        with vlm.vision._chunks(image) as chunks:
            start, tile, end = last_three(vlm, chunks)
            marks = [time.perf_counter()]
            mtmd.mtmd_encode_chunk(see, tile)
            marks.append(time.perf_counter())
            lib.llama_memory_clear(lib.llama_get_memory(model.context), False)
            head, place = [*text[0], *words(start)], lib.llama_pos(0)
            read(head)
            embeddings = mtmd.mtmd_get_output_embd(see)
            mtmd.mtmd_helper_decode_image_chunk(
                see, model.context, tile, embeddings, len(head), 0, 512, ctypes.byref(place), nothing, None
            )
            tokens = [*words(end), *text[1]]
        for i in range(n):
            read(tokens)
            logits = lib.llama_get_logits_ith(model.context, -1)
            tokens = [int(np.ctypeslib.as_array(logits, (model.n_vocabulary,)).argmax())]
            if i == 0:
                marks.append(time.perf_counter())
        return laps([*marks, time.perf_counter()])

    return run


# --- torch ------------------------------------------------------------------------------------------------------------


def torch_arm(checkpoint: Path, vlm: Any, image: Image.Image, threads: int) -> Arm:
    """The checkpoint in fp32 with scaled_dot_product_attention, a bare loop."""
    import torch

    from mpa_edge.vlm.transformers.checkpoint import load_model, set_threads

    set_threads(threads)
    model: Any = load_model(str(checkpoint), "cpu").float()
    pixels, ids = onnx_inputs(vlm, image)
    tensors = {name: torch.from_numpy(array) for name, array in pixels.items()}
    at, words = torch.from_numpy(ids == vlm.artifact.tokens.image_id), torch.from_numpy(ids)
    base, table = model.base_model, model.get_input_embeddings()

    @torch.inference_mode()
    def run(n: int) -> Times:
        marks = [time.perf_counter()]
        seen = base.get_image_features(**tensors, return_dict=True).pooler_output
        features = torch.cat([rows.flatten(0, -2) for rows in seen])
        marks.append(time.perf_counter())
        embeds, cache = table(words), None
        embeds[at] = features
        for i in range(n):
            out = base.text_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
            token = model.lm_head(out.last_hidden_state[:, -1]).argmax(-1)
            embeds, cache = table(token[None]), out.past_key_values
            if i == 0:
                marks.append(time.perf_counter())
        return laps([*marks, time.perf_counter()])

    return run
