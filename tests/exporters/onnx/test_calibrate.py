"""What a model is fed while it answers a run's questions: recorded, and read back for the quantizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from mpa_edge.config.library import load_recipe, load_scheme
from mpa_edge.errors import MpaError
from mpa_edge.exporters.onnx.calibrate import Feeds, Recorder, calibrate, chosen_rows, images_folder, one_pass
from mpa_edge.exporters.onnx.quantize import quantize_component
from mpa_edge.exporters.source import Source, open_source
from mpa_edge.nursery.render import pictures
from mpa_edge.runs.files import write_json
from mpa_edge.runs.manifest import FOLDERS, RENDERED, RUN_FILE
from mpa_edge.runs.parquet import write_part
from mpa_edge.types import ParityRecord
from tests.vlm.exported import STUDENT, checkpoint, onnx_folder


def record(i: int, verdict: str = "gap", image: str = "a.png") -> ParityRecord:
    answers = {"answer": "red", "teacher_answer": "red", "student_answer": "blue"}
    return ParityRecord(id=f"q{i}", image_id="x", image=image, question="What color?", verdict=verdict, **answers)


def step(n: int, past: int) -> dict[str, np.ndarray]:
    """Inputs of a decoder for n tokens behind `past` others, Qwen's three axes."""
    return {
        "inputs_embeds": np.full((1, n, 4), past, np.float32),
        "attention_mask": np.ones((1, past + n), np.int64),
        "position_ids": np.broadcast_to(np.arange(past, past + n), (3, 1, n)),
        "num_logits_to_keep": np.array(1),
        "past_key_values.0.key": np.zeros((1, 2, past, 8), np.float32),
    }


def test_an_answer_becomes_one_pass() -> None:
    whole = one_pass([step(5, 0), step(1, 5), step(1, 6)])
    assert {name: array.shape for name, array in whole.items()} == {
        "inputs_embeds": (1, 7, 4),
        "attention_mask": (1, 7),
        "position_ids": (3, 1, 7),
        "num_logits_to_keep": (),
        "past_key_values.0.key": (1, 2, 0, 8),
    }
    assert whole["position_ids"][0, 0].tolist() == list(range(7))
    assert whole["num_logits_to_keep"] == 0
    assert whole["inputs_embeds"][0, :, 0].tolist() == [0, 0, 0, 0, 0, 5, 6]


def test_confirmed_questions_spread_over_the_run(tmp_path: Path) -> None:
    folder = tmp_path / FOLDERS["identify"]
    folder.mkdir()
    verdicts = ["unverified", "gap", "parity", "gap", "unverified", "parity", "gap"]
    write_part(folder, 0, [record(i, verdict) for i, verdict in enumerate(verdicts)], [], ParityRecord)
    assert [row.id for row in chosen_rows(tmp_path, 2)] == ["q1", "q3"]
    assert [row.id for row in chosen_rows(tmp_path, 100)] == ["q1", "q2", "q3", "q5", "q6"]


def test_a_run_without_a_confirmed_question(tmp_path: Path) -> None:
    folder = tmp_path / FOLDERS["identify"]
    folder.mkdir()
    write_part(folder, 0, [record(0, "unverified")], [], ParityRecord)
    with pytest.raises(MpaError, match=r"no confirmed question to measure static ranges on: use onnx-int8"):
        chosen_rows(tmp_path, 4)


def test_a_plain_checkpoint_has_no_questions(tmp_path: Path) -> None:
    source = open_source(str(checkpoint(STUDENT)))
    with pytest.raises(MpaError, match=r"'student' has no questions to measure static ranges on: export a run"):
        calibrate(source, {}, tmp_path, 4, None)


def test_where_the_images_lie(tmp_path: Path) -> None:
    recipe = load_recipe("minicharts")
    assert images_folder(tmp_path, recipe) == tmp_path / RENDERED
    write_json(tmp_path / RUN_FILE, {"images": "/somewhere/else", "limit": None})
    assert images_folder(tmp_path, recipe) == Path("/somewhere/else")
    write_json(tmp_path / RUN_FILE, {"images": None, "limit": None})
    mine = recipe.images.model_copy(update={"path": "mine", "render": None})
    assert images_folder(tmp_path, recipe.model_copy(update={"images": mine})) == Path("mine")


def test_feeds_come_in_order_and_end(tmp_path: Path) -> None:
    for i in (1, 0):
        np.savez(tmp_path / f"vision-{i:05d}.npz", pixel_values=np.full(2, i))
    np.savez(tmp_path / "decoder-00000.npz", other=np.zeros(1))
    feeds = Feeds(tmp_path, "vision")
    found = [feeds.get_next(), feeds.get_next()]
    assert [one["pixel_values"].tolist() for one in found if one] == [[0, 0], [1, 1]]
    assert feeds.get_next() is None


def a_run(folder: Path, n: int) -> Source:
    """A run of the built-in student with n questions, as far as calibration reads it."""
    (folder / RENDERED).mkdir(parents=True)
    (folder / FOLDERS["identify"]).mkdir()
    drawn = list(pictures(n, 3, "target"))
    for one in drawn:
        one.image.save(folder / RENDERED / one.name)
    rows = [record(i, image=one.name) for i, one in enumerate(drawn)]
    write_part(folder / FOLDERS["identify"], 0, rows, [], ParityRecord)
    return Source("mine", checkpoint(STUDENT), folder / "exports", run=folder, recipe=load_recipe("minicharts"))


def graphs() -> dict[str, Path]:
    folder = onnx_folder(STUDENT) / "onnx"
    names = {"vision": "vision_encoder", "embed": "embed_tokens", "decoder": "decoder_model_merged"}
    return {component: folder / f"{name}.onnx" for component, name in names.items()}


@pytest.mark.slow
def test_what_is_recorded_runs_and_calibrates(tmp_path: Path) -> None:
    source, folder = a_run(tmp_path / "run", 6), tmp_path / "calibration"
    folder.mkdir()
    calibrate(source, graphs(), folder, 4, None)
    assert [path.name for path in sorted(folder.iterdir())] == [
        f"{component}-{i:05d}.npz" for component in ("decoder", "vision") for i in range(4)
    ]
    for component in ("vision", "decoder"):
        session = onnxruntime.InferenceSession(str(graphs()[component]), providers=["CPUExecutionProvider"])
        feeds = Feeds(folder, component).get_next()
        assert feeds is not None
        assert sorted(feeds) == sorted(entry.name for entry in session.get_inputs())
        assert np.isfinite(session.run(None, feeds)[0]).all()
        out = tmp_path / f"{component}.onnx"
        notes = quantize_component(graphs()[component], out, component, "qdq8", load_scheme("onnx-qdq"), folder)
        assert out.stat().st_size < graphs()[component].stat().st_size / 2
        assert all("stay fp32" in note for note in notes)


@pytest.mark.slow
def test_images_that_are_gone(tmp_path: Path) -> None:
    source, folder = a_run(tmp_path / "run", 2), tmp_path / "calibration"
    folder.mkdir()
    shutil.rmtree(tmp_path / "run" / RENDERED)
    with pytest.raises(MpaError, match=r"no image of the run is left in .*images: put them back"):
        calibrate(source, graphs(), folder, 2, None)


def test_the_recorder_listens_without_changing_anything(tmp_path: Path) -> None:
    class Graph:
        def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [feeds["x"] * 2] if "x" in feeds else [feeds["inputs_embeds"]]

    class Model:
        vision, decoder = Graph(), Graph()

    recorder = Recorder(Model)
    assert Model.vision.run({"x": np.ones(1)})[0].tolist() == [2.0]
    Model.decoder.run(step(3, 0))
    Model.decoder.run(step(1, 3))
    recorder.write(tmp_path)
    stored = Feeds(tmp_path, "decoder").get_next()
    assert recorder.n == 1
    assert stored is not None
    assert stored["inputs_embeds"].shape == (1, 4, 4)
