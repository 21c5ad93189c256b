"""The bundle: everything that a device needs and nothing else, the same bytes each time, whole or not there."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from mpa_edge.bench.device.protocol import JobOrder, Step, from_json
from mpa_edge.bench.device.runner import PACKAGES
from mpa_edge.bench.host.bundle import Question, make_bundle, pack, weight_files
from mpa_edge.config.library import load_scheme
from mpa_edge.errors import MpaError
from tests.bench.bundles import image_questions, plain_order, read_bundle, rows_of, small
from tests.exporters import hand_made

ROOT = Path(__file__).parents[3]
ODD = (
    "a b.png",
    "it's; $(rm) `x`.png",
    "ünï/中文.PNG",
    "line\nbreak.png",
    "-rf.png",
    "no suffix",
    "deep/../deep/er.png",
)


def test_the_same_inputs_make_the_same_bytes(tmp_path: Path) -> None:
    first, second = small(tmp_path, tmp_path / "one"), small(tmp_path, tmp_path / "two")
    assert first.sha256 == second.sha256
    names = sorted(path.relative_to(first.folder) for path in first.folder.rglob("*"))
    assert names == sorted(path.relative_to(second.folder) for path in second.folder.rglob("*"))
    files = [name for name in names if (first.folder / name).is_file()]
    assert all((first.folder / name).read_bytes() == (second.folder / name).read_bytes() for name in files)


def test_everything_is_in_the_manifest_and_sha256sum_agrees(tmp_path: Path) -> None:
    bundle = small(tmp_path)
    found = {path.relative_to(bundle.folder).as_posix() for path in bundle.folder.rglob("*") if path.is_file()}
    assert found == {*bundle.manifest.files, "manifest.json", "SHA256SUMS"}
    subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=bundle.folder, check=True, capture_output=True)
    assert bundle.manifest.files["models/artifact/model-q8_0.gguf"].bytes == len(b"language q8_0") * 200
    assert {"run.py", "bench.sh", "README.md", "order.json", "mpa_edge.zip"} <= found
    assert "models/artifact/README.md" not in found
    assert "models/artifact/manifest.json" not in found
    assert read_bundle(bundle.folder) == bundle


def test_another_question_image_or_model_makes_another_hash(tmp_path: Path) -> None:
    before = small(tmp_path).sha256
    asked = image_questions(tmp_path / "images", ["a.png", "b.png"])
    other = [asked[0], asked[1].model_copy(update={"prompt": "Why?"})]
    assert small(tmp_path, tmp_path / "2", questions=other).sha256 != before
    assert small(tmp_path, tmp_path / "3", base=tmp_path / "export").sha256 != before
    changed = shutil.copytree(tmp_path / "export", tmp_path / "changed")
    (changed / "model-q8_0.gguf").write_bytes(b"else")
    assert small(tmp_path, tmp_path / "4", artifact=changed).sha256 != before
    assert small(tmp_path, tmp_path / "5").sha256 == before


def test_the_order_of_a_job_without_its_own(tmp_path: Path) -> None:
    mine = JobOrder({"artifact": "models/artifact"}, (Step("artifact", "q1", 5),), warm_up=0)
    assert from_json((small(tmp_path, tmp_path / "2", order=mine).folder / "order.json").read_text()) == mine


def test_models_are_hard_links_where_the_disk_can(tmp_path: Path) -> None:
    bundle = small(tmp_path, base=tmp_path / "export")
    assert bundle.manifest.variants == {"artifact": "models/artifact", "base": "models/base"}
    for variant in bundle.manifest.variants.values():
        one = bundle.folder / variant / "model-q8_0.gguf"
        assert one.samefile(tmp_path / "export" / "model-q8_0.gguf")


def test_weights_beside_a_graph_come_along(tmp_path: Path) -> None:
    export = hand_made.export(tmp_path / "export", load_scheme("onnx-fp32"))
    for name in ("onnx/vision_encoder.onnx_data", "onnx/vision_encoder.onnx_data_1", "tokenizer.json"):
        (export / name).write_bytes(b"w")
    (export / "onnx" / "other.bin").write_bytes(b"not asked for")
    files = set(small(tmp_path).manifest.files)
    assert {"models/artifact/onnx/vision_encoder.onnx_data", "models/artifact/onnx/vision_encoder.onnx_data_1"} <= files
    assert "models/artifact/tokenizer.json" in files
    assert "models/artifact/onnx/other.bin" not in files
    assert weight_files(export, ["onnx/embed_tokens.onnx"]) == ["onnx/embed_tokens.onnx"]


def test_names_of_images_are_made_safe_and_stay_apart(tmp_path: Path) -> None:
    asked = image_questions(tmp_path / "images", ODD)
    same = Question(id='"\n', image=ODD[0], prompt='"\n\u2028', max_new_tokens=3)
    bundle = small(tmp_path, questions=[*asked, same])
    rows = rows_of(bundle.folder)
    assert [row["id"] for row in rows] == [*(one.id for one in asked), '"\n']
    assert rows[-1]["prompt"] == '"\n\u2028'
    assert rows[-1]["max_new_tokens"] == 3
    assert rows[-1]["image"] == rows[0]["image"]
    assert len({row["image"] for row in rows}) == len(ODD)
    for row, one in zip(rows, asked, strict=False):
        assert re.fullmatch(r"images/[0-9a-f]{16}(\.png)?", row["image"])
        assert (bundle.folder / row["image"]).read_bytes() == (tmp_path / "images" / one.image).read_bytes()


def test_no_answer_goes_to_the_device(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="extra"):
        Question(id="1", image="a", prompt="b", answers=("secret",))  # type: ignore[call-arg]
    assert set(rows_of(small(tmp_path).folder)[0]) == {"id", "image", "prompt", "max_new_tokens", "pixels"}


@pytest.mark.parametrize(
    ("content", "said"), [(None, "unreadable file"), (b"no image", "not an image"), (b"", "empty")]
)
def test_an_image_that_cannot_be_used_is_refused_on_the_host(tmp_path: Path, content: bytes | None, said: str) -> None:
    small(tmp_path)
    if content is not None:
        (tmp_path / "images" / "bad.png").write_bytes(content)
    with pytest.raises(MpaError, match=f"{said}.*; fix the image or remove its questions"):
        small(tmp_path, tmp_path / "other", questions=[Question(id="1", image="bad.png", prompt="?")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "export", "images"]


def test_the_runs_pixel_cap_holds(tmp_path: Path) -> None:
    small(tmp_path, max_pixels=210)
    with pytest.raises(MpaError, match="too many pixels"):
        small(tmp_path, tmp_path / "other", max_pixels=209)


@pytest.mark.parametrize(
    "name", ["models/artifact/model-q8_0.gguf", "mpa_edge.zip", "questions.jsonl", "manifest.json"]
)
def test_a_damaged_bundle_is_made_again(tmp_path: Path, name: str) -> None:
    bundle = small(tmp_path)
    path = bundle.folder / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    assert small(tmp_path) == bundle == read_bundle(bundle.folder)
    assert path.read_bytes() == content


def test_other_things_are_left_alone(tmp_path: Path) -> None:
    small(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("of value")
    with pytest.raises(MpaError, match="something other than a bundle"):
        small(tmp_path, mine)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_named_by_its_hash(tmp_path: Path) -> None:
    bundle = small(tmp_path, tmp_path / "bundles", named_by_hash=True)
    assert bundle.folder == tmp_path / "bundles" / bundle.sha256[:12]
    assert small(tmp_path, tmp_path / "bundles", named_by_hash=True) == bundle
    assert [path.name for path in (tmp_path / "bundles").iterdir()] == [bundle.sha256[:12]]


def test_halves_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead, living = tmp_path / f".bundle.{gone.pid}.half", tmp_path / f".other.{os.getppid()}.half"
    for folder in (dead, living):
        (folder / "models").mkdir(parents=True)
    small(tmp_path)
    assert not dead.exists()
    assert living.is_dir()


def test_a_tar_is_the_same_each_time_and_unpacks_to_the_bundle(tmp_path: Path) -> None:
    bundle = small(tmp_path)
    pack(bundle, tmp_path / "one.tar")
    os.utime(bundle.folder / "run.py", (1, 1))
    (bundle.folder / "stray.txt").write_text("not part of it")
    pack(read_bundle(bundle.folder), tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "one.tar").read_bytes())) as tar:
        assert all(name.startswith(f"mpa-edge-{bundle.sha256[:12]}/") for name in tar.getnames())
    subprocess.run(["tar", "-xf", "one.tar"], cwd=tmp_path, check=True)
    assert read_bundle(tmp_path / f"mpa-edge-{bundle.sha256[:12]}").manifest == bundle.manifest


# --- the code that goes along -----------------------------------------------------------------------------------------


IMPORTS = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
from mpa_edge.bench.device import runner
light = set(sys.modules) - before
from mpa_edge.bench.device import worker
for name, _ in worker.RUNTIMES.values():
    importlib.import_module(name)
ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "mpa_edge"]
assert all(module.__file__.startswith(sys.argv[1]) for module in ours)
print(*({name.partition(".")[0] for name in light} - sys.stdlib_module_names))
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_the_code_of_a_bundle_is_complete_and_light(tmp_path: Path) -> None:
    code = small(tmp_path).folder / "mpa_edge.zip"
    assert code.stat().st_size < 150_000
    done = subprocess.run([sys.executable, "-P", "-c", IMPORTS, code], capture_output=True, text=True, check=True)
    runner, everything = done.stdout.splitlines()
    assert set(runner.split()) == {"mpa_edge"}
    assert not {"torch", "transformers", "openai", "click", "rich", "pyarrow", "psutil"} & set(everything.split())


def test_each_module_of_the_package_that_the_code_imports_at_once_is_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(small(tmp_path).folder / "mpa_edge.zip") as archive:
        names = set(archive.namelist())
        trees = {name: ast.parse(archive.read(name)) for name in names}
    for name, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mpa_edge"):
                path = node.module.replace(".", "/")
                assert {f"{path}.py", f"{path}/__init__.py"} & names, f"{name} imports {node.module}"


def vermin(folder: Path) -> subprocess.CompletedProcess[str]:
    # `# novm` in the code marks what only type checkers read
    options = ["-q", "-t=3.10-", "--violations", "--eval-annotations"]
    command = [sys.executable, "-P", "-c", "from vermin.main import main; main()", *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_code_of_a_bundle_runs_on_python_3_10(tmp_path: Path) -> None:
    folder = small(tmp_path).folder
    with zipfile.ZipFile(folder / "mpa_edge.zip") as archive:
        archive.extractall(folder)
    done = vermin(folder)
    assert done.returncode == 0, done.stdout
    options = ["--isolated", "--no-cache", "--target-version", "py310", "--select", "E9,F"]
    subprocess.run([sys.executable, "-m", "ruff", "check", *options, str(folder)], check=True, capture_output=True)


@pytest.mark.parametrize(
    "code", ["from typing import Self", "import tomllib", "import hashlib\nhashlib.file_digest(1)"]
)
def test_newer_code_would_be_found_out(tmp_path: Path, code: str) -> None:
    (tmp_path / "new.py").write_text(code)
    assert vermin(tmp_path).returncode == 1


def test_the_pins_that_a_device_is_told_are_those_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pinned = {one for extra in extras.values() for one in extra if "==" in one}
    told = {name for packages in PACKAGES.values() for name in packages.values() if "==" in name}
    assert told
    assert told <= pinned


def test_a_folder_that_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(MpaError, match=r"artifact.json is missing or damaged"):
        make_bundle(
            folder=tmp_path / "b",
            artifact=tmp_path,
            base=None,
            questions=(),
            images=tmp_path / "images",
            order=plain_order(()),
        )
    assert list(tmp_path.iterdir()) == []


def test_images_inside_parquet_files_are_taken_out(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (question, _) = image_questions(tmp_path / "images", ["a.png", "b.png"])
    data = (tmp_path / "images" / "a.png").read_bytes()
    pq.write_table(pa.table({"image": [{"bytes": data, "path": None}]}), tmp_path / "images" / "rows.parquet")
    asked = [question.model_copy(update={"image": "rows.parquet#0"})]
    made = small(tmp_path, questions=asked)
    (row,) = rows_of(made.folder)
    assert (made.folder / row["image"]).read_bytes() == data
