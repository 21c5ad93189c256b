"""The wheel of what is installed here: a job runs this very version, released or not, changed or not.

Built from the package's own files (Binary distribution format, packaging.python.org): nothing is fetched, and a
checkout gives the same file as an installed copy.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
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
    """The wheel. MpaError where mpa-edge is not installed, so that nobody knows what it requires."""
    info = f"mpa_edge-{mpa_edge.__version__}.dist-info"
    files = dict(_package())
    files |= {f"{info}/METADATA": _metadata(), f"{info}/WHEEL": WHEEL.encode()}
    files[f"{info}/entry_points.txt"] = ENTRY.encode()
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    whole = BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return whole.getvalue()


def _package() -> Iterator[tuple[str, bytes]]:
    """Name in the wheel and content of every file; the folders of a checkout go where a wheel has them."""
    for path in _files(PACKAGE):
        yield f"mpa_edge/{path.relative_to(PACKAGE).as_posix()}", path.read_bytes()
    if root() == PACKAGE / "_assets":
        return
    for folder in ASSETS:
        for path in _files(root() / folder):
            yield f"mpa_edge/_assets/{path.relative_to(root()).as_posix()}", path.read_bytes()
    yield f"mpa_edge/_assets/{CONSTRAINTS}", constraints().read_bytes()


def _files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if "__pycache__" not in path.parts and not path.name.startswith("."))


def _metadata() -> bytes:
    """What is required, as the installation has it; the version is that of the code."""
    try:
        text = distribution("mpa-edge").read_text("METADATA") or ""
    except PackageNotFoundError as error:
        raise MpaError(
            "nothing says what mpa-edge requires, as it is only on the path: pip install -e . first"
        ) from error
    lines = text.split("\n")
    return "\n".join(f"Version: {mpa_edge.__version__}" if _is_version(line) else line for line in lines).encode()


def _is_version(line: str) -> bool:
    return line.startswith("Version: ")


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
