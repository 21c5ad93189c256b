"""Another build of llama.cpp, which knows nothing of us, loads the files and says what our VLM says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mpa_edge.artifact import Artifact
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.nursery.render import pictures
from mpa_edge.types import Request, Trace
from mpa_edge.vlm.llama_cpp.model import LlamaCppVLM
from mpa_edge.vlm.shared.prompts import prompt_text
from tests.vlm.independent_client import MARKER
from tests.vlm.llama_exported import gguf_folder

pytestmark = [pytest.mark.peer, pytest.mark.slow]

CLIENT = Path(__file__).with_name("independent_client.py")
# two builds for two machines sum up in another order
TOLERANCE = {"student": 0.02}
# images in the size that the vision encoder takes: llama.cpp's own scaling is not the image processor's everywhere
SIZES = {"qwen2_vl": (168, 112), "qwen2_5_vl": (168, 112), "llava": (112, 112), "internvl": (112, 112)}
EVERY = ("student", "idefics3", "smolvlm", *SIZES)
QUESTIONS = ("How many bars are there?", "What is the value of the purple bar?", "x")


def asked(which: str) -> list[Request]:
    charts = [picture.image for picture in pictures(2, 99, "target")]
    images = charts if which == "student" else [drawn(*SIZES.get(which, (256, 192)), seed=seed) for seed in (1, 2)]
    return [Request(image, question, 8) for image in images for question in QUESTIONS]


def own_text(artifact: Artifact, prompt: str) -> str:
    """The prompt as such a client's user would write it: the start and end of an image are the runtime's business."""
    text = prompt_text(artifact, prompt, MARKER)
    return text.replace(f"<|vision_start|>{MARKER}<|vision_end|>", MARKER)


def say(which: str, vlm: LlamaCppVLM, requests: list[Request], folder: Path) -> list[dict]:
    rows = []
    for i, request in enumerate(requests):
        request.image.save(folder / f"{i}.png")
        text = own_text(vlm.artifact, request.prompt)
        rows.append({"image": str(folder / f"{i}.png"), "prompt": text, "n": request.max_new_tokens})
    files = {name: str(vlm.file(name)) for name in ("language", "mmproj")}
    job = {**files, "any_size": which.startswith("qwen"), "asked": rows}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, str(CLIENT), str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict] = json.loads(done.stdout)
    return found


def agrees(theirs: dict, ours: Trace, tolerance: float) -> None:
    """The same tokens with the same probabilities, as long as no two tokens are as good as each other.

    The server names no probability of a token that ends within a character, as random weights like to do.
    """
    pairs = zip(theirs["tokens"], ours.tokens, strict=False)
    common = next((i for i, (one, other) in enumerate(pairs) if one != other), len(ours.tokens))
    for i in range(common if len(theirs["logprobs"]) == len(theirs["tokens"]) else 0):
        logits = ours.logits[i].astype(np.float64)
        expected = logits[ours.tokens[i]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert theirs["logprobs"][i] == pytest.approx(expected, abs=tolerance)
    if common < len(ours.tokens):
        there = ours.logits[common]
        assert there[ours.tokens[common]] - there[theirs["tokens"][common]] < 2 * tolerance
    else:
        assert len(theirs["tokens"]) == common


@pytest.mark.parametrize("which", EVERY)
def test_another_build_of_llama_cpp_says_the_same(which: str, tmp_path: Path) -> None:
    vlm, requests = LlamaCppVLM(gguf_folder(which), name=which, threads=1), asked(which)
    ours = vlm.trace(requests)
    theirs = say(which, vlm, requests, tmp_path)
    vlm.close()
    for reply, trace in zip(theirs, ours, strict=True):
        assert reply["n_prompt"] == len(trace.input_ids)
        agrees(reply, trace, TOLERANCE.get(which, 0.1))
    assert len({tuple(reply["tokens"]) for reply in theirs}) > 2
    if which == "student":
        assert all(len(reply["logprobs"]) == len(reply["tokens"]) for reply in theirs)
