"""A run, an export, a benchmark or a bucket from somebody else: nothing outside of its folder is changed or read.

Every attack aims at a folder of the test, so one that succeeds harms nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mpa_edge.artifact import read_artifact
from mpa_edge.bench.host.bundle import half_made
from mpa_edge.bench.host.pipeline import read_job, read_results
from mpa_edge.bench.report.read import find_benches, read_bench
from mpa_edge.cli.main import exit_code
from mpa_edge.errors import MpaError, OutsideError
from mpa_edge.evaluation.predict import question_set
from mpa_edge.exporters.publish.manifest import read_export_manifest
from mpa_edge.runs.files import read_json, sha256_file, write_json
from mpa_edge.runs.manifest import MANIFEST, RUN_FILE, read_manifest
from mpa_edge.runs.parquet import part_path, read_rows, schema_of
from mpa_edge.runs.remote.mirror import JOURNAL, Mirror
from mpa_edge.runs.remote.stores import Store
from mpa_edge.types import PseudoAnnotation
from tests.bench import made_up

ROOT = Path(__file__).parents[2]
SECRET = "precious"
# what the package deletes, empties, makes or appends to in a run folder
PLACES = (
    *(".lock", "run.log", "run.log.1", RUN_FILE, "recipe.yaml", ".images.jsonl", "teacher-usage.json", "images"),
    *("1-annotate", "1-annotate/manifest.json", "1-annotate/.inputs.json", "1-annotate/.seconds.json"),
    *("1-annotate/part-00000.parquet", "1-annotate/poisoned-00000.json", "2-identify", "2-identify/teacher"),
    *("3-level", "3-level/checkpoints", "3-level/checkpoints/checkpoint-2", "3-level/.adapter", "3-level/adapter"),
    *("merged", "merged/.building", "evaluate", "evaluate/questions", "evaluate/.answers-base.jsonl"),
    *("exports", "exports/.lock", "exports/.parts", "exports/.accuracy", "exports/.building-onnx-int8"),
    *("exports/.old-onnx-int8", "exports/onnx-int8", "exports/onnx-int8/onnx", "bench", "bench/bundles", "bench/base"),
    *("bench/.answers", "bench/cpu", "bench/cpu/onnx-int8", "bench/cpu/onnx-int8/device", "bench/cpu/onnx-int8/.lock"),
)
COMMANDS = {
    **{name: [name] for name in ("align", "annotate", "identify", "level", "merge", "evaluate")},
    "annotate again": ["annotate", "--fresh"],
    "other settings": ["annotate", "--set", "annotate.samples_per_image=2"],
    "export": ["export", "--as", "onnx-int8"],
    "bench": ["bench", "--as", "onnx-int8"],
    "bundle": ["bundle", "--as", "onnx-int8"],
    "report": ["report"],
    "what would run": ["align", "--dry-run"],
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/ with six images, and run/ with annotate and identify finished. Copy it before changing anything."""
    home = tmp_path_factory.mktemp("made")
    (home / "photos").mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(home / "photos" / f"{i}.png")
    words = [sys.executable, "-m", "tests.remote_run", str(home / "run"), str(home / "photos")]
    subprocess.run(words, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    return home


class Scene:
    """A copy of the run beside the files of somebody."""

    def __init__(self, made: Path, home: Path) -> None:
        self.home, self.run, self.victim = home, home / "run", home / "victim"
        self.made = made
        self.fresh()

    def fresh(self) -> None:
        for folder in (self.run, self.victim):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.made / "run", self.run)
        (self.victim / "sub").mkdir(parents=True)
        (self.victim / "a.txt").write_text(SECRET)
        (self.victim / "sub" / "b.txt").write_text(SECRET)

    def link(self, name: str, to: Path) -> Path:
        place = self.run / name
        shutil.rmtree(place, ignore_errors=True)
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(to)
        return place

    def is_kept(self) -> bool:
        found = {path.relative_to(self.victim).as_posix() for path in self.victim.rglob("*")}
        texts = [path.read_text() for path in self.victim.rglob("*.txt")]
        return found == {"a.txt", "sub", "sub/b.txt"} and texts == [SECRET, SECRET]


@pytest.fixture
def scene(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Scene(made, tmp_path)


@pytest.fixture
def refused(scene: Scene, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(words) -> the error line of a command that must fail with 1 and leave the victim alone."""

    def call(*words: str) -> str:
        capfd.readouterr()
        code, said = exit_code(list(words)), capfd.readouterr()
        lines = said.err.strip().splitlines()
        assert scene.is_kept(), words
        assert code == 1, (words, said)
        assert [line for line in lines if line.startswith("error: ")] == [lines[-1]], (words, lines)
        assert "unexpected" not in lines[-1], (words, lines)
        return lines[-1]

    return call


def words_of(command: str, run: Path) -> list[str]:
    first, *rest = COMMANDS[command]
    return [first, str(run), *rest]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_link_in_a_run_is_refused_by_every_command(scene: Scene, refused: Callable[..., str], command: str) -> None:
    for place in PLACES:
        for to in (scene.victim, scene.victim / "a.txt", scene.victim / "new")[: 3 if command == "annotate" else 1]:
            scene.fresh()
            scene.link(place, to)
            if (scene.run / RUN_FILE).is_symlink() and not (scene.run / RUN_FILE).is_file():
                refused(*words_of(command, scene.run))  # no run
                continue
            said = refused(*words_of(command, scene.run))
            assert f"{scene.run / place} is a link" in said
            assert said.endswith("delete it, or put a copy of what you need in its place")


@pytest.mark.parametrize("place", ["", "recipe"])
@pytest.mark.parametrize("name", [".lock", "1-annotate", "1-annotate/.seconds.json", "images", "run.log"])
def test_a_link_in_the_folder_that_out_names(scene: Scene, refused: Callable[..., str], name: str, place: str) -> None:
    """Where a recipe is the source, the run folder is only --out; it may not even be one yet."""
    if place:
        shutil.rmtree(scene.run)
        scene.run.mkdir()
    scene.link(name, scene.victim)
    refused("annotate", "minicharts", "--out", str(scene.run), "--set", "images.render.n=4")


@pytest.mark.parametrize("stage", ["1-annotate", "2-identify"])
@pytest.mark.parametrize("name", ["../../victim/a.txt", "{victim}/a.txt", "..", ".", "", "x/../../../victim/a.txt"])
def test_a_manifest_that_names_other_files(scene: Scene, refused: Callable[..., str], stage: str, name: str) -> None:
    path, name = scene.run / stage / MANIFEST, name.format(victim=scene.victim)
    write_json(path, read_json(path) | {"outputs": {name: "0" * 64}})
    for command in ("annotate", "identify", "level", "other settings") if stage == "1-annotate" else ("identify",):
        said = refused(*words_of(command, scene.run))
        assert said.startswith(f"error: {path}: {name!r} leads out of its folder: do not use this file")


def harmful_rows(run: Path, image: str) -> None:
    """A part of annotate whose rows name an image elsewhere, with a manifest that agrees."""
    folder, path = run / "1-annotate", part_path(run / "1-annotate", 0)
    table = pq.ParquetFile(path).read()
    column = pa.array([image] * len(table), pa.string())
    table = table.set_column(table.schema.get_field_index("image"), "image", column)
    pq.write_table(table.cast(schema_of(PseudoAnnotation)), path)
    manifest = read_json(folder / MANIFEST)
    manifest["outputs"][path.name] = sha256_file(path)
    write_json(folder / MANIFEST, manifest)


@pytest.mark.parametrize("image", ["../victim/a.png", "{victim}/a.png", "", "a/../../../x.png"])
def test_rows_that_name_images_elsewhere(scene: Scene, refused: Callable[..., str], image: str) -> None:
    harmful_rows(scene.run, image.format(victim=scene.victim))
    said = refused("identify", str(scene.run))
    assert f"{part_path(scene.run / '1-annotate', 0)}: " in said
    assert "leads out of its folder" in said


def test_a_row_of_the_wrong_kind_is_one_line(scene: Scene) -> None:
    path = part_path(scene.run / "1-annotate", 0)
    table = pq.ParquetFile(path).read()
    at = table.schema.get_field_index("question")
    pq.write_table(table.set_column(at, "question", pa.array([None] * len(table), pa.string())), path)
    with pytest.raises(MpaError, match=r"is damaged \(question: .*\): delete it and rerun"):
        read_rows(path, PseudoAnnotation)


@pytest.mark.parametrize("place", [".lock", "run.log", "1-annotate/.seconds.json"])
def test_a_pipe_blocks_nothing(scene: Scene, refused: Callable[..., str], place: str) -> None:
    (scene.run / place).unlink(missing_ok=True)
    os.mkfifo(scene.run / place)
    assert "is no ordinary file" in refused("annotate", str(scene.run))


def test_a_hard_link_is_not_cut_short(scene: Scene, refused: Callable[..., str]) -> None:
    (scene.run / ".lock").unlink()
    os.link(scene.victim / "a.txt", scene.run / ".lock")
    refused("annotate", str(scene.run))


def test_generated_questions_that_name_other_images(scene: Scene, tmp_path: Path) -> None:
    from mpa_edge.config.library import load_recipe

    config = load_recipe("minicharts", ["evaluate.n=2"]).evaluate
    asked = question_set(config, tmp_path / "questions")
    path = asked.folder / "answers.jsonl"
    path.write_text(path.read_text().replace(asked.samples[0].image, "../victim/a.png"))
    with pytest.raises(OutsideError, match=r"answers.jsonl: '../victim/a.png' leads out of"):
        question_set(config, tmp_path / "questions")


# --- what is somebody's own and works ---------------------------------------------------------------------------------


def test_links_of_the_user_are_followed(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The run folder is a link, the images folder is one, and images in it are links."""
    scene = Scene(made, tmp_path)
    (tmp_path / "here").symlink_to(scene.run)
    (tmp_path / "photos").mkdir()
    for path in (made / "photos").iterdir():
        (tmp_path / "photos" / path.name).symlink_to(path)
    (tmp_path / "images").symlink_to(tmp_path / "photos")
    for images in ("photos", "images"):
        capfd.readouterr()
        assert exit_code(["identify", str(tmp_path / "here"), "--images", str(tmp_path / images)]) == 0
        assert capfd.readouterr().err == "identify: already done, nothing changed\n"
    assert (tmp_path / "here").is_symlink()


@pytest.mark.parametrize("extra", [[], ["--fresh"]])
def test_a_file_of_answers_that_is_a_link(scene: Scene, refused: Callable[..., str], extra: list[str]) -> None:
    (scene.home / "x.jsonl").symlink_to(scene.victim / "a.txt")
    said = refused("evaluate", "nursery:student", "--limit", "2", "--out", str(scene.home / "x.jsonl"), *extra)
    assert "x.jsonl is a link" in said


# --- exports, benchmarks and bundles ----------------------------------------------------------------------------------


def export_with(folder: Path, name: str) -> Path:
    """An export whose documents name a file."""
    entry = {"path": name, "bytes": 8, "sha256": "0" * 64}
    document = {"inputs": {}, "scheme": {"name": "x"}, "target": None, "files": {"vision": entry}, "notes": []}
    document |= {"outputs": {name: entry}, "parity": {}, "parity_details": {}, "versions": {}}
    folder.mkdir()
    write_json(folder / MANIFEST, document | {"seconds": 1.0, "peak_rss_bytes": 1})
    tokens = {"image": "i", "image_id": 1, "ends": [2], "special": []}
    artifact = {"name": "x", "scheme": "x", "format": "onnx", "family": "smolvlm", "model_type": "smolvlm"}
    artifact |= {"prompt": {"before": "i", "after": "", "placeholder": "i"}, "tokens": tokens, "image": {}, "text": {}}
    write_json(folder / "artifact.json", artifact | {"files": {"vision": name}, "context_tokens": 8})
    return folder


@pytest.mark.parametrize("name", ["../victim/a.txt", "{victim}/a.txt", "way/a.txt", "one"])
def test_an_export_that_names_other_files(scene: Scene, name: str) -> None:
    folder = export_with(scene.home / "export", name.format(victim=scene.victim))
    (folder / "way").symlink_to(scene.victim)
    (folder / "one").symlink_to(scene.victim / "a.txt")
    with pytest.raises(OutsideError, match="leads out of"):
        read_artifact(folder)
    with pytest.raises(OutsideError, match="leads out of"):
        manifest = read_export_manifest(folder)
        assert manifest
        manifest.outputs[name].is_in(folder)


def test_an_export_folder_of_somebody(scene: Scene, refused: Callable[..., str]) -> None:
    """Of a folder that --out names, only our own names count: the rest of it is the user's."""
    for name in (".parts", ".building-onnx-int8", ".old-onnx-int8", "onnx-int8", ".lock", "onnx-int8/onnx"):
        scene.fresh()
        shutil.rmtree(scene.run)
        scene.link("latest", scene.victim)
        scene.link(name, scene.victim)
        refused("export", "nursery:student", "--as", "onnx-int8", "--out", str(scene.run))


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return made_up.write(tmp_path / "run" / "bench" / "cpu" / "onnx-int8", run="run", target="cpu", n=80)


@pytest.mark.parametrize("place", ["", "bench.json", "answers.jsonl", "timings.jsonl", "device", "thumbnails"])
def test_a_report_reads_nothing_else(bench: Path, tmp_path: Path, place: str) -> None:
    moved = shutil.move(bench / place, tmp_path / "elsewhere") if (bench / place).exists() else tmp_path
    (bench / place if place else bench).symlink_to(moved)
    with pytest.raises(MpaError, match="leads out of|is a link"):
        [read_bench(folder) for folder in find_benches(tmp_path / "run")]


def test_a_job_folder_with_links(scene: Scene) -> None:
    folder = scene.home / "job"
    folder.mkdir()
    (folder / "out.jsonl").symlink_to(scene.victim / "a.txt")
    bench: Any = None  # nothing of it is looked at before the job
    with pytest.raises(MpaError, match=r"out.jsonl is a link"):
        read_results(bench, folder)


@pytest.mark.parametrize("job", [{"id": "../../../evil"}, {"id": 7}, {"folder": ["x"]}, [], {"inputs": None}])
def test_a_job_record_that_we_did_not_write(tmp_path: Path, job: Any) -> None:
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert read_job(tmp_path).id is None
    assert read_job(tmp_path).folder is None


def test_making_a_bundle_removes_only_our_own_leftovers(tmp_path: Path) -> None:
    kept = (".notes.half", ".bundle.x.half", f".bundle.{os.getpid()}.half.half", ".other.999999999.half")
    gone = (".bundle.999999999.half", ".bundle.999999999-old.999999999.half")
    for name in (*kept, *gone):
        (tmp_path / name).mkdir()
    with half_made(tmp_path / "bundle"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_a_folder_of_the_user_is_not_taken_for_a_bundle(tmp_path: Path) -> None:
    """Image files of operating systems come with SHA256SUMS too."""
    from mpa_edge.bench.host.bundle import CODE, SUMS, _is_bundle

    (tmp_path / SUMS).write_text(f"{'0' * 64}  own.iso\n")
    (tmp_path / "own.iso").write_text("")
    assert not _is_bundle(tmp_path)
    (tmp_path / SUMS).write_text(f"{'0' * 64}  {CODE}\n{'0' * 64}  own.iso\n")
    assert _is_bundle(tmp_path)
    (tmp_path / "thesis.txt").write_text("")
    assert not _is_bundle(tmp_path)


def test_an_export_does_not_replace_a_folder_of_the_user(scene: Scene, refused: Callable[..., str]) -> None:
    (scene.home / "models" / "onnx-int8").mkdir(parents=True)
    (scene.home / "models" / "onnx-int8" / "thesis.txt").write_text("")
    said = refused("export", "nursery:student", "--as", "onnx-int8", "--out", str(scene.home / "models"))
    assert said.endswith("onnx-int8 contains something other than an export: choose another --out")


def test_answers_of_the_user_are_not_replaced(scene: Scene, refused: Callable[..., str]) -> None:
    (scene.home / "answers.jsonl").write_text("")
    refused("nursery", "render", str(scene.home), "--n", "2")


@pytest.mark.parametrize("stored", [{"images": 7, "limit": None}, {"images": None, "limit": "x"}, {"images": None}, []])
def test_a_run_file_of_other_values(scene: Scene, refused: Callable[..., str], stored: Any) -> None:
    write_json(scene.run / RUN_FILE, stored)
    assert "run.json is damaged" in refused("annotate", str(scene.run))


def test_a_job_folder_of_a_cloud_run(scene: Scene) -> None:
    from mpa_edge.cloud.job import Job, write_kit

    (scene.run / "cloud").mkdir()
    (scene.run / "cloud" / "kit").symlink_to(scene.victim)
    job = Job("x", "sky", scene.run, "s3://b/x", *[None] * 10)  # type: ignore[arg-type]
    with pytest.raises(MpaError, match="cloud/kit is a link"):
        write_kit(job)
    assert scene.is_kept()


# --- buckets ----------------------------------------------------------------------------------------------------------


@contextmanager
def of_memory(name: str) -> Iterator[Store]:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    store = Store("memory://bucket/run")
    memory.pipe_file("/bucket/run/run.json", b"{}")
    memory.store[f"/bucket/run/{name}"] = memory.store["/bucket/run/run.json"]
    try:
        yield store
    finally:
        memory.store.clear()


@pytest.mark.parametrize("name", ["../other/x", "/etc/x", "a/../../x", "a\0b", "1-annotate/../../x"])
def test_a_bucket_that_lists_names_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "work").mkdir()
    with of_memory(name) as store, pytest.raises(MpaError, match="a path outside of its folder: remove that object"):
        Mirror(store, tmp_path / "work").pull()
    assert os.listdir(tmp_path) == ["work"]
    assert os.listdir(tmp_path / "work") == [JOURNAL]


def test_a_folder_as_bucket_with_links(scene: Scene, refused: Callable[..., str]) -> None:
    for place in ("1-annotate", "1-annotate/manifest.json", "2-identify/part-00000.parquet"):
        scene.fresh()
        scene.link(place, scene.victim / "a.txt" if "/" in place else scene.victim)
        said = refused("annotate", f"file://{scene.run}", "--work", str(scene.home / "work"), "--fresh")
        assert "a path outside of its folder" in said


def test_a_working_copy_of_somebody(scene: Scene) -> None:
    """Its journal names what may be deleted from the bucket, and its links would be uploaded or overwritten."""
    bucket, work = scene.home / "bucket" / "run", scene.home / "work"
    bucket.mkdir(parents=True)
    (scene.home / "bucket" / "other.json").write_text("{}")
    work.mkdir()
    head, line = json.dumps({"url": f"file://{bucket}"}), json.dumps(["../other.json", 1, 1, 1, "x"])
    (work / JOURNAL).write_text(f"{head}\n{line}\n")
    with pytest.raises(MpaError, match="a path outside of its folder"):
        Mirror(Store(f"file://{bucket}"), work).push()
    assert (scene.home / "bucket" / "other.json").is_file()


def test_a_link_in_a_working_copy(scene: Scene, refused: Callable[..., str]) -> None:
    work = scene.home / "work"
    work.mkdir()
    for place in ("1-annotate", "run.log", JOURNAL):
        (work / place).unlink(missing_ok=True)
        (work / place).symlink_to(scene.victim / ("" if place == "1-annotate" else "a.txt"))
        said = refused("annotate", f"file://{scene.run}", "--work", str(work))
        assert f"{work / place} is a link" in said
        (work / place).unlink()


def test_the_run_of_the_tests_is_sound(made: Path) -> None:
    assert read_manifest(made / "run" / "1-annotate") is not None
    assert read_manifest(made / "run" / "2-identify") is not None
