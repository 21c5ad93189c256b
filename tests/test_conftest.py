"""The rule that nothing is skipped in CI, tried on a test run of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = """
import pytest

def test_runs(): pass

@pytest.mark.skipif(True, reason="no peer here")
def test_skipped(): pass

def test_skips_itself(): pytest.importorskip("no_such_package")

@pytest.mark.xfail(strict=True)
def test_known_to_fail(): raise ValueError
"""


@pytest.mark.parametrize(
    ("ci", "closing"), [("true", "1 failed, 1 passed, 1 xfailed, 1 error"), ("", "1 passed, 2 skipped, 1 xfailed")]
)
def test_a_skipped_test_fails_in_ci(tmp_path: Path, ci: str, closing: str) -> None:
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(SKIPS)
    env = {**os.environ, "CI": ci}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert closing in done.stdout.splitlines()[-1]
    assert ("nothing may be: " in done.stdout) == bool(ci)


def test_a_module_that_skips_itself_fails_in_ci(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text("import pytest\npytest.importorskip('no_such_package')\ndef test_x(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "CI": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode not in (0, 5)
    assert "error" in done.stdout.splitlines()[-1]
