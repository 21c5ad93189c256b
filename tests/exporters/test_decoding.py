"""One decoding for the checkpoint, its exports, the gate and a server: greedy, with the checkpoint's own penalty."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mpa_edge.config.library import load_scheme
from mpa_edge.errors import MpaError
from mpa_edge.exporters.pipeline import check_possible
from mpa_edge.exporters.publish.layout import write_layout
from mpa_edge.exporters.publish.snippets import snippets
from mpa_edge.exporters.source import open_source
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.exporters.verify.reference import Checkpoint
from mpa_edge.types import Request
from mpa_edge.vlm import load
from tests.families import zoo
from tests.vlm import exported
from tests.vlm.llama_exported import gguf_folder, hybrid_folder

WHICH, PENALTY = "idefics3", 1.3
FOLDERS = {
    "onnx-fp32": lambda: exported.onnx_folder(WHICH),
    "gguf-f16": lambda: gguf_folder(WHICH),
    "hybrid": lambda: hybrid_folder(WHICH, "f16"),
}
ASKED = (
    Request(drawn(256, 64, seed=1), "How many red shapes are there, and is the largest one left of 3 o'clock?", 24),
    Request(drawn(70, 150, seed=2), "What is it?", 24),
)


def with_settings(folder: Path, **settings: object) -> Path:
    """A copy of the checkpoint whose generation_config.json asks for more."""
    shutil.copytree(exported.checkpoint(WHICH), folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | settings))
    return folder


def test_the_gate_and_the_host_follow_the_penalty(tmp_path: Path) -> None:
    folder = with_settings(tmp_path / "penalty", repetition_penalty=PENALTY)
    host = [reply.text for reply in load(str(folder), name="host", device="cpu", threads=1).answer(ASKED)]
    plain = load(str(exported.checkpoint(WHICH)), name="plain", device="cpu", threads=1).answer(ASKED)
    assert host != [reply.text for reply in plain], "the penalty must matter, or nothing is tested"
    traced = Checkpoint(folder, {}, 1)
    for i, seen in enumerate(traced.trace(ASKED)):  # as one padded batch
        assert traced.processor.tokenizer.decode(seen.trace.tokens, skip_special_tokens=True).strip() == host[i]
        assert [int(row.argmax()) for row in seen.trace.logits] == list(seen.trace.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_an_export_answers_as_its_checkpoint_does(name: str, tmp_path: Path) -> None:
    folder = with_settings(tmp_path / "penalty", repetition_penalty=PENALTY)
    expected = [seen.trace.tokens for seen in Checkpoint(folder, {}, 1).trace(ASKED)]
    source = open_source(str(folder), out=str(tmp_path / "exports"))
    export = Path(shutil.copytree(FOLDERS[name](), tmp_path / "export"))
    if name == "onnx-fp32":
        made = write_layout(source, load_scheme(name), export, None, 2048, 1)
        assert made.repetition_penalty == PENALTY
        cards = "".join(snippets(made, "?", name))
        assert f"p = [*ids[0], *answer], {PENALTY}" in cards
    else:
        exported.change(export, repetition_penalty=PENALTY)
    model = load(str(export), name="export", threads=1)
    traces, replies = model.trace(ASKED), model.answer(ASKED)
    for trace, reply, tokens in zip(traces, replies, expected, strict=True):
        assert trace.tokens == tokens
        assert reply.n_tokens == len(tokens)
        assert [int(row.argmax()) for row in trace.logits] == list(tokens)


def test_a_larger_gemma_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo.checkpoint("gemma4"), tmp_path / "larger"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["use_bidirectional_attention"] = "vision"
    (folder / "config.json").write_text(json.dumps(config))
    for scheme in ("onnx-fp32", "gguf-f16"):
        with pytest.raises(MpaError, match="cover Gemma 4 E2B and E4B, not the larger models, .*: align and export"):
            check_possible(open_source(str(folder), out="runs"), load_scheme(scheme))


def test_what_exports_cannot_follow_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    folder = with_settings(tmp_path / "beams", num_beams=4, no_repeat_ngram_size=2)
    source = open_source(str(folder), out=str(tmp_path / "exports"))
    with pytest.raises(MpaError, match="sets num_beams, no_repeat_ngram_size, which exports cannot follow"):
        check_possible(source, load_scheme("onnx-fp32"))
