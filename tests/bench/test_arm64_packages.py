"""The emulated device has the packages that this machine was tested with."""

from __future__ import annotations

import re
from pathlib import Path

from mpa_edge.bench.device.runner import PACKAGES

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")


def pins() -> dict[str, str]:
    lines = (ROOT / "tests/bench/arm64.txt").read_text(encoding="utf-8").splitlines()
    found = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(found), "each line is NAME==VERSION --hash=sha256:HEX"
    return {pin[1]: pin[2] for pin in found if pin}


def test_versions_are_those_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    assert {name: tested.get(name) for name in pins()} == pins()


def test_every_runtime_is_there() -> None:
    needed = {package.partition("=")[0] for packages in PACKAGES.values() for package in packages.values()}
    assert needed <= set(pins())
