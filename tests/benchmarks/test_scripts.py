"""Every script starts, the examples in its docstrings are true, and the documents show what it makes of the results."""

from __future__ import annotations

import doctest
import importlib
import os
import subprocess
import sys

import pytest

from tests.docs.markdown import ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
LIBRARIES = ("common", "scale_models")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in LIBRARIES])
def test_a_script_starts(name: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--help"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: {name}.py")


@pytest.mark.parametrize("name", ["bench", "throughput"])
def test_examples_in_docstrings(name: str) -> None:
    done = doctest.testmod(importlib.import_module(name))
    assert done.attempted > 0
    assert done.failed == 0


def test_the_results_page_is_what_its_generator_makes() -> None:
    import report

    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == report.results_page()


def test_the_marked_tables_are_what_their_generators_make() -> None:
    import common
    import nursery
    import report

    results, export, scale, pair = (
        common.read(common.DOCS / f"{n}.json") for n in ("results", "export", "scale", "nursery")
    )
    for path, name, block in (
        ("README.md", "results", report.readme_results(results)),
        ("README.md", "export", report.readme_export(export["accuracy"])),
        ("docs/scale.md", "runs", report.runs_block(scale["runs"])),
        ("docs/scale.md", "compare", report.compare_block(scale["compare"])),
        ("docs/nursery.md", "results", f"{nursery.kinds_table(pair)}\nMeasured by `{pair['command']}`.\n"),
    ):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert f"<!-- {name}:begin -->\n{block}<!-- {name}:end -->" in text, f"run the script that writes {path}"


def test_commands_name_no_folders_of_one_machine() -> None:
    import common

    assert (
        common.command("x.py", ["a", "--work", "/w", "--n", "3"], without=("--work",))
        == "python benchmarks/x.py a --n 3"
    )
    for path in sorted((ROOT / "docs").glob("*.json")):
        commands = [line for line in path.read_text(encoding="utf-8").splitlines() if '"command"' in line]
        assert not [line for line in commands if " /" in line], path.name
