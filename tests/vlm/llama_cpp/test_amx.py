from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.vlm.llama_cpp import amx


@pytest.mark.parametrize(
    ("version", "faulty"),
    [
        *(("11.4.0", True), ("11.5.0", False), ("12.2.0", True), ("12.4.0", False)),
        *(("13.2.1", True), ("13.3.0", False), ("14.1.0", False), ("15.2.0", False)),
    ],
)
def test_the_compilers_with_the_fault(version: str, faulty: bool) -> None:
    library = b"\0ggml_backend_amx_mul_mat\0GCC: (Debian %b-14) %b\0" % (version.encode(), version.encode())
    assert bool(amx.faulty_compiler(library)) is faulty
    assert amx.faulty_compiler(library.replace(b"amx", b"avx")) is None
    assert amx.faulty_compiler(b"ggml_backend_amx_mul_mat\0clang version 19.1.7") is None


def test_a_library_on_a_cpu_with_amx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder, cpu = tmp_path / "amx.c", tmp_path / "lib", tmp_path / "cpuinfo"
    folder.mkdir()
    source.write_text("void ggml_backend_amx_mul_mat(void) {}\n")
    library = folder / "libggml-cpu.so"
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library], check=True)
    said = subprocess.run(["gcc", "-dumpfullversion"], check=True, capture_output=True, text=True).stdout
    major, minor = map(int, said.split(".")[:2])
    monkeypatch.setattr(amx, "CPU_INFO", cpu)
    monkeypatch.setattr(amx, "MENDED", {11: 0, major: minor + 1})
    cpu.write_text("flags : fpu avx512f\n")
    amx.refuse_miscompiled(folder, "0.3.36")
    cpu.write_text("flags : fpu avx512f amx_tile amx_int8\n")
    with pytest.raises(MpaError, match=re.escape(f"compiled by GCC {major}.{minor}, whose")) as refused:
        amx.refuse_miscompiled(folder, "0.3.36")
    assert str(refused.value).endswith("llama-cpp-python==0.3.36")
