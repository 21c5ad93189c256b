"""The installed code as one file for another machine, which then runs this very version, released or changed.

A cloud machine installs the wheel (Binary distribution format, packaging.python.org); a device imports from a zip file
of the modules that it needs. Nothing is fetched, and a checkout gives the same file as an installed copy.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from io import BytesIO
from pathlib import Path

import mpa_edge
from mpa_edge.config.library import root
from mpa_edge.errors import MpaError

PACKAGE = Path(mpa_edge.__file__).parent
ASSETS = ("recipes", "targets", "export")
CONSTRAINTS = "constraints.txt"
WHEEL = "Wheel-Version: 1.0\nGenerator: mpa-edge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
ENTRY = "[console_scripts]\nmpa-edge = mpa_edge.cli.main:run\n"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same content is the same file


def wheel_name() -> str:
    """File name of the wheel."""
    return f"mpa_edge-{mpa_edge.__version__}-py3-none-any.whl"


def constraints() -> Path:
    """The versions that this one was tested with."""
    return root() / CONSTRAINTS


def build_wheel() -> bytes:
    """The wheel. MpaError where mpa-edge is not installed, because then its requirements are unknown."""
    info = f"mpa_edge-{mpa_edge.__version__}.dist-info"
    files = package_files("**/*") | _assets()
    files |= {f"{info}/METADATA": _metadata(), f"{info}/WHEEL": WHEEL.encode()}
    files[f"{info}/entry_points.txt"] = ENTRY.encode()
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    return build_zip(files)


def build_zip(files: Mapping[str, bytes]) -> bytes:
    """A zip file that Python imports from; the same contents give the same bytes. `files`: name in it -> content."""
    whole = BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return whole.getvalue()


def package_files(*patterns: str) -> dict[str, bytes]:
    """Name in a wheel -> content, of the files of this package that match glob patterns."""
    found = {path for pattern in patterns for path in _files(PACKAGE, pattern)}
    return {f"mpa_edge/{path.relative_to(PACKAGE).as_posix()}": path.read_bytes() for path in sorted(found)}


def _assets() -> dict[str, bytes]:
    """The folders of a checkout that a wheel has inside the package; an installed copy has them there already."""
    if root() == PACKAGE / "_assets":
        return {}
    paths = [path for folder in ASSETS for path in _files(root() / folder, "**/*")]
    return {
        f"mpa_edge/_assets/{path.relative_to(root()).as_posix()}": path.read_bytes() for path in [*paths, constraints()]
    }


def _files(folder: Path, pattern: str) -> list[Path]:
    found = (path for path in folder.glob(pattern) if path.is_file())
    return sorted(path for path in found if "__pycache__" not in path.parts and not path.name.startswith("."))


def _metadata() -> bytes:
    """The requirements of the installation; the version is that of the code."""
    try:
        text = distribution("mpa-edge").read_text("METADATA") or ""
    except PackageNotFoundError as error:
        raise MpaError(
            "the requirements of mpa-edge are unknown, because it is not installed: pip install -e . first"
        ) from error
    lines = text.split("\n")
    own = f"Version: {mpa_edge.__version__}"
    return "\n".join(own if line.startswith("Version: ") else line for line in lines).encode()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
