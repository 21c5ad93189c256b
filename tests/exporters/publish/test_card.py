"""The card of an export: what it says is true, what it shows runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mpa_edge.artifact import Artifact, read_artifact
from mpa_edge.config.library import load_recipe, load_scheme
from mpa_edge.config.scheme import Scheme, Tolerance
from mpa_edge.exporters.publish.card import card, write_card
from mpa_edge.exporters.publish.licences import front_matter
from mpa_edge.exporters.source import Source, open_source
from mpa_edge.exporters.verify.probes import drawn
from mpa_edge.exporters.verify.reference import Checkpoint
from mpa_edge.nursery.render import render
from mpa_edge.runs.files import write_json
from mpa_edge.runs.manifest import FOLDERS, Manifest
from mpa_edge.types import Request
from mpa_edge.vlm import WEIGHTS
from mpa_edge.vlm.llama_cpp.server import READ_BOTH_WAYS
from tests.exporters import hand_made
from tests.exporters.gguf.test_convert import SIZES
from tests.exporters.javascript import client
from tests.exporters.llama_programs import LIBRARIES, mtmd_cli
from tests.families import zoo
from tests.vlm.exported import STUDENT, checkpoint, onnx_folder
from tests.vlm.llama_exported import gguf_folder, hybrid_folder

ROOT = Path(__file__).parents[3]
COUNTS = {
    "annotate": {"images": 1000, "annotated": 3605},
    "identify": {"gap": 1606, "parity": 1867},
    "level": {"replayed": 718},
}


def run_source(tmp_path: Path, **changes: str) -> Source:
    """A run that says how it went, without the run."""
    run = tmp_path / "mine"
    for stage, counts in COUNTS.items():
        manifest = Manifest(
            stage=stage, inputs={}, outputs={}, config_sha256="", versions={}, seed=0, seconds=1.0, counts=counts
        )
        (run / FOLDERS[stage]).mkdir(parents=True)
        write_json(run / FOLDERS[stage] / "manifest.json", manifest)
    recipe = load_recipe("minicharts").model_copy(update=changes)
    return Source("mine", WEIGHTS / "student", tmp_path / "exports", run=run, recipe=recipe)


def text_of(source: Source, folder: Path, scheme: Scheme, **changes: object) -> str:
    hand_made.export(folder, scheme)
    artifact = hand_made.artifact_of(scheme)
    return card(source, artifact, hand_made.manifest_of(scheme, folder, **changes), folder)


def test_the_card_of_a_run_says_where_it_comes_from(tmp_path: Path) -> None:
    text = text_of(run_source(tmp_path), tmp_path / "x", load_scheme("onnx-int8"), accuracy=hand_made.ACCURACY)
    head = front_matter(text)
    assert head == {
        "license": "apache-2.0",
        "pipeline_tag": "image-text-to-text",
        "library_name": "transformers.js",
        "tags": ["mpa-edge", "onnx", "idefics3"],
    }
    for part in (
        "recipe `minicharts`",
        "`nursery:teacher` wrote 3,605 pseudo labels for 1,000 unlabelled images",
        "the 1,606 that only the teacher answered correctly, and 718 that both did",
        "| **this export** | **67.7%** (95 % interval 64.8% to 70.6%) |",
        "| base, fp32 | 49.3% |",
        "| aligned, fp32 | 68.3% |",
        "It keeps 97% of the gain.",
        "1,000 held-out questions",
        "target `cpu`",
        "| vision | `onnx/vision_encoder_int8.onnx` | int8 |",
        "- vision: 3 of 28 weights stay fp32",
        "| smallest cosine of an image embedding | 0.99912 |",
        "| prompt tokens equal | yes |",
    ):
        assert part in text, part
    assert "Warning" not in text
    assert str(tmp_path) not in text


def test_the_card_of_a_plain_checkpoint_claims_no_training(tmp_path: Path) -> None:
    text = text_of(open_source("nursery:student", out=str(tmp_path)), tmp_path / "x", load_scheme("gguf-q4_0"))
    assert "Not measured" in text
    assert "pseudo labels" not in text
    assert "of `student`, family smolvlm" in text
    assert "license: apache-2.0" in text


def test_a_downloaded_checkpoint_is_called_by_its_name_on_the_hub(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--owner--small-vlm" / "snapshots" / ("0" * 40)
    shutil.copytree(WEIGHTS / "student", snapshot)
    text = text_of(Source("small-vlm", snapshot, tmp_path / "exports"), tmp_path / "x", load_scheme("onnx-int8"))
    head = front_matter(text)
    assert (head["base_model"], head["license"]) == ("owner/small-vlm", "apache-2.0")
    assert "of `owner/small-vlm`, family smolvlm" in text


def test_a_card_without_labels_says_what_its_figures_are(tmp_path: Path) -> None:
    figures = hand_made.ACCURACY.model_copy(update={"truth": "teacher"})
    text = text_of(run_source(tmp_path), tmp_path / "x", load_scheme("onnx-int8"), accuracy=figures)
    assert "## Agreement with the teacher\n" in text
    assert "| Model | Agreement with the teacher |" in text
    assert "cannot show what the teacher gets wrong itself" in text
    assert "ccuracy |" not in text


def test_the_card_says_what_each_step_lost(tmp_path: Path) -> None:
    """By the 16-bit export beside it, if that is of the same checkpoint; in between, only on the same questions."""
    source, int8 = run_source(tmp_path), load_scheme("onnx-int8")

    def steps(accuracy: object = hand_made.ACCURACY) -> list[str]:
        text = text_of(source, tmp_path / "onnx-int8", int8, accuracy=accuracy)
        return [line for line in text.splitlines() if re.match(r"\| (checkpoint|16 bits) to ", line)]

    whole = "| checkpoint to onnx-int8 | 0.013 | +0.6 | 1,000 |"
    unknown = "| 16 bits to onnx-int8 | not measured | not measured |  |"
    nothing = ["| checkpoint to 16 bits | not measured | not measured |  |", unknown]
    assert steps() == [*nothing, whole]
    assert steps(None) == [*nothing, "| checkpoint to onnx-int8 | 0.013 | not measured |  |"]
    half, fp16 = tmp_path / "onnx-fp16", load_scheme("onnx-fp16")
    figures = hand_made.ACCURACY.model_copy(update={"artifact": 0.682})
    parity = hand_made.PARITY | {"kl": 1e-5}
    hand_made.export(half, fp16, accuracy=figures, parity=parity)
    assert steps() == [
        "| checkpoint to 16 bits | 1e-05 | +0.1 | 1,000 |",
        "| 16 bits to onnx-int8 | not measured | +0.5 | 1,000 |",
        whole,
    ]
    others = figures.model_copy(update={"questions_sha256": "1" * 64})
    hand_made.export(half, fp16, accuracy=others, parity=parity)
    assert steps() == ["| checkpoint to 16 bits | 1e-05 | +0.1 | 1,000 |", unknown, whole]
    hand_made.export(half, fp16, accuracy=figures, parity=parity, inputs={"checkpoint": "1" * 64})
    assert steps() == [*nothing, whole]


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_licence_that_restricts_is_said_loudly(tmp_path: Path, role: str) -> None:
    """The teacher's, too: its words are in the training data."""
    model = Path(shutil.copytree(WEIGHTS / role, tmp_path / "private" / "giant"))
    (model / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    source = run_source(tmp_path, **{role: str(model)})
    text = text_of(source, tmp_path / "x", load_scheme("gguf-q8_0"))
    warnings = [line for line in text.splitlines() if "Warning" in line]
    said = "the licence of `giant` (cc-by-nc-4.0) restricts use: no commercial use, or research only."
    assert warnings == [f"> **Warning:** {said}"]
    assert front_matter(text)["license"] == ("cc-by-nc-4.0" if role == "student" else "apache-2.0")
    assert "private" not in text


def test_the_base_on_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text = text_of(run_source(tmp_path, student="owner/small-vlm"), tmp_path / "x", load_scheme("hybrid-int8-q4_0"))
    head = front_matter(text)
    assert (head["base_model"], head["base_model_relation"]) == ("owner/small-vlm", "quantized")
    assert head["license"] == "unknown"
    assert "restricts use: its terms are its own" in text


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_what_does_not_run_is_not_shown(tmp_path: Path) -> None:
    """Three position axes need a program of their own; transformers.js has no InternVL, and no word for qdq."""

    def shown(scheme: str, model_type: str) -> tuple[int, int, int]:
        source, made = run_source(tmp_path / scheme / model_type), load_scheme(scheme)
        folder = hand_made.export(tmp_path / scheme / model_type / "x", made)
        artifact = hand_made.artifact_of(made, model_type=model_type)
        text = card(source, artifact, hand_made.manifest_of(made, folder), folder)
        return tuple(len(blocks(text, language)) for language in ("python", "js", "sh"))  # type: ignore[return-value]

    assert shown("onnx-int8", "smolvlm") == (2, 1, 0)
    assert shown("onnx-int8", "qwen2_vl") == (1, 1, 0)
    assert shown("onnx-int8", "internvl") == (2, 0, 0)
    assert shown("onnx-qdq", "smolvlm") == (2, 0, 0)
    assert shown("gguf-q4_0", "smolvlm") == (1, 0, 1)
    assert shown("hybrid-int8-q4_0", "smolvlm") == (1, 0, 0)


def test_llama_cpp_is_told_the_limits_that_a_gguf_file_cannot_hold(tmp_path: Path) -> None:
    scheme = load_scheme("gguf-q4_0")
    folder = hand_made.export(tmp_path / "x", scheme)
    image = {
        "kind": "qwen2_vl",
        "patch_size": 14,
        "merge_size": 2,
        "size": {"shortest_edge": 3136, "longest_edge": 200704},
    }
    artifact = hand_made.artifact_of(scheme, model_type="qwen2_vl", image=image)
    (command,) = blocks(card(run_source(tmp_path), artifact, hand_made.manifest_of(scheme, folder), folder), "sh")
    assert "-m model-q4_0.gguf --mmproj mmproj-q8_0.gguf" in command
    assert "--image-min-tokens 4 --image-max-tokens 256" in command


# --- the snippets, run -----------------------------------------------------------------------------------------------


def place(tmp_path: Path, made: Path, which: str) -> tuple[Path, Artifact]:
    """A copy of a real export, with an image beside its files and the card in it."""
    artifact = read_artifact(made)
    folder = Path(shutil.copytree(made, tmp_path / artifact.scheme))
    image = next((render(tmp_path / "images", 1, 7, "target"), tmp_path / "images")[1].rglob("*.png"))
    shutil.copy(image, folder / "image.png")
    scheme = Scheme(
        schema_version=1,
        name=artifact.scheme,
        format=artifact.format,
        components=_bits(artifact),
        tolerance=Tolerance(vision_cosine_min=0.5, kl_max=1.0),
    )
    source = open_source(str(checkpoint(which)), out=str(tmp_path / "exports"))
    write_card(source, artifact, hand_made.manifest_of(scheme, folder), folder)
    return folder, artifact


def _bits(artifact: Artifact) -> dict[str, str]:
    known = {part: Path(name).stem.rpartition("-")[2] for part, name in artifact.files.items()}
    return {part: "fp32" if name.endswith(".onnx") else known[part] for part, name in artifact.files.items()}


def said(folder: Path, command: list[str], programs: Path | None = None) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if programs is not None:
        environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(LIBRARIES)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace").strip()


def python_answers(folder: Path) -> list[str]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    return [said(folder, [sys.executable, "-c", code]) for code in blocks(text, "python")]


@pytest.fixture
def _known_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the built-in student was made for: it says nothing to any other."""
    monkeypatch.setattr("mpa_edge.exporters.publish.card.QUESTION", "How many bars are there?")


@pytest.mark.peer
@pytest.mark.usefixtures("_known_question")
@pytest.mark.parametrize("which", [STUDENT, "llava", "internvl", "qwen2_vl", "gemma4"])
def test_the_snippets_of_an_onnx_export_run(tmp_path: Path, which: str) -> None:
    folder, artifact = place(tmp_path, onnx_folder(which), which)
    answers = python_answers(folder)
    assert len(answers) == (1 if artifact.model_type in ("qwen2_vl", "gemma4") else 2)
    (folder / "node_modules").symlink_to(client() / "node_modules")
    for number, code in enumerate(blocks((folder / "README.md").read_text(encoding="utf-8"), "js")):
        (folder / f"run{number}.mjs").write_text(code, encoding="utf-8")
        answers.append(said(folder, ["node", f"run{number}.mjs"]))
    assert len(answers) == (2 if artifact.model_type in ("internvl", "qwen2_vl", "gemma4") else 3)
    assert answers[0]
    if which == STUDENT:  # random models say another thing at the last bit of a pixel
        assert set(answers) == {answers[0]}


@pytest.mark.peer
@pytest.mark.usefixtures("_known_question")
def test_the_snippets_of_gguf_and_hybrid_exports_run(tmp_path: Path) -> None:
    answers = []
    for made in (gguf_folder(STUDENT), hybrid_folder(STUDENT)):
        folder, _ = place(tmp_path, made, STUDENT)
        answers += python_answers(folder)
    assert len(answers) == 2
    assert answers[0] == answers[1] != ""


@pytest.mark.peer
@pytest.mark.usefixtures("_known_question")
@pytest.mark.parametrize(
    "which", [STUDENT, *(kind for kind in zoo.MODEL_TYPES if kind not in ("smolvlm", *READ_BOTH_WAYS))]
)
def test_the_command_of_a_gguf_export_gives_transformers_answer(tmp_path: Path, which: str) -> None:
    """By llama.cpp's own program, which renders the template that is in the file."""
    folder, artifact = place(tmp_path, gguf_folder(which), which)
    image = drawn(*SIZES.get(which, (224, 168)), seed=3)
    image.save(folder / "image.png")
    [code] = blocks((folder / "README.md").read_text(encoding="utf-8"), "sh")
    reference = Checkpoint(checkpoint(which), {}, 1)
    [seen] = reference.trace([Request(image, "How many bars are there?", artifact.max_new_tokens)])
    wanted = reference.processor.tokenizer.decode(seen.trace.tokens, skip_special_tokens=which == STUDENT).strip()
    assert len(seen.trace.tokens) > 1
    # the program keeps its cache in 16 bits, and a random model says another thing at the next near tie
    start = wanted[:12]
    # a thread of the program's own prints the answer, and may not come to its end before the program's
    answers: list[str] = []
    while start not in answers and len(answers) < 6:
        answers.append(said(folder, ["sh", "-c", code], mtmd_cli().parent)[:12])
    assert start in answers


def test_the_command_of_llama_cpp_is_one_line_of_shell(tmp_path: Path) -> None:
    """A question with a quote in it stays one word, and llama.cpp reads backslashes as escapes."""
    from mpa_edge.exporters.publish.snippets import llama_cpp_snippet

    artifact = hand_made.artifact_of(load_scheme("gguf-q4_0"))
    code = llama_cpp_snippet(artifact, "What's it?\nAnswer 'yes' or \\no.").code
    script = code.replace("llama-mtmd-cli", f"{sys.executable} -c 'import sys, json; print(json.dumps(sys.argv[1:]))'")
    words = json.loads(said(tmp_path, ["sh", "-c", script]))
    assert words[-2:] == ["-p", r"What's it?\nAnswer 'yes' or \\no."]
