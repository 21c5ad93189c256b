from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mpa_edge.errors import MpaError
from mpa_edge.vlm.llama_cpp.gguf_header import read_header
from tests.exporters.gguf.headers import LIST, TEXT, U8, gguf, items, number, tensor, text, write

HUGE = 2**63
GOOD = gguf((number("general.alignment", 32),), (tensor("a", (2, 4)),), data=b"\0" * 32)


def test_it_reads_what_the_gguf_library_writes(tmp_path: Path) -> None:
    import gguf as library

    path = tmp_path / "x.gguf"
    writer = library.GGUFWriter(path, "llama")
    writer.add_name("a model")
    writer.add_bool("flag", True)
    writer.add_float32("eps", 0.5)
    writer.add_token_list([f"token {i}" for i in range(100)])
    writer.add_array("few", [1, 2, 3])
    weights = np.random.Generator(np.random.PCG64(0)).normal(size=(4, 64)).astype(np.float32)
    q8_0 = library.GGMLQuantizationType.Q8_0
    writer.add_tensor("plain", weights)
    writer.add_tensor("packed", library.quants.quantize(weights, q8_0), raw_dtype=q8_0)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()

    header = read_header(path)
    known = library.GGUFReader(path).tensors
    assert [(t.name, t.shape, t.type, t.offset, t.n_bytes) for t in header.tensors] == [
        (t.name, (4, 64), t.tensor_type.name.lower(), t.data_offset, t.n_bytes) for t in known
    ]
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["flag"] is True
    assert header.metadata["eps"] == 0.5
    assert header.metadata["few"] == (1, 2, 3)
    assert header.metadata["tokenizer.ggml.tokens"] is None
    assert header.file_bytes == path.stat().st_size


HOSTILE = {
    "empty": b"",
    "magic": gguf(magic=b"GGML"),
    "version": gguf(version=1),
    "big endian": gguf(version=3 << 24),
    "many tensors": gguf(n_tensors=HUGE),
    "more tensors than bytes": gguf(n_tensors=60_000),
    "many values": gguf(n_values=HUGE),
    "more values than bytes": gguf(n_values=4_000),
    "long key": gguf((text(b"k" * 2_000) + number("", 1)[8:],)),
    "key beyond the file": gguf((b"\xff" * 8,)),
    "text beyond the file": gguf((text("k") + TEXT.to_bytes(4, "little") + (HUGE - 1).to_bytes(8, "little"),)),
    "long list": gguf((items("k", U8, HUGE, b""),)),
    "list in a list": gguf((items("k", LIST, 1, b"\0" * 64),)),
    "list of nothing known": gguf((items("k", 99, 1, b"\0" * 64),)),
    "value of no known kind": gguf((text("k") + (77).to_bytes(4, "little"),)),
    "a key twice": gguf((number("k", 1), number("k", 2))),
    "alignment 0": gguf((number("general.alignment", 0),)),
    "alignment 1 GB": gguf((number("general.alignment", 2**30),)),
    "alignment is a text": gguf((text("general.alignment") + TEXT.to_bytes(4, "little") + text("32"),)),
    "no dimensions": gguf((), (tensor("a", ()),), data=b"\0" * 64),
    "five dimensions": gguf((), (tensor("a", (1,) * 5),), data=b"\0" * 64),
    "an axis of 0": gguf((), (tensor("a", (0, 4)),), data=b"\0" * 64),
    "product beyond 64 bits": gguf((), (tensor("a", (2**40, 2**40)),), data=b"\0" * 64),
    "unknown type": gguf((), (tensor("a", (4,), kind=250),), data=b"\0" * 64),
    "row that fits no block": gguf((), (tensor("a", (4, 33), kind=8),), data=b"\0" * 4096),
    "behind the end": gguf((), (tensor("a", (4,), offset=64),), data=b"\0" * 64),
    "offset beyond 64 bits": gguf((), (tensor("a", (4,), offset=2**64 - 32),), data=b"\0" * 64),
    "crooked offset": gguf((), (tensor("a", (4,), offset=4),), data=b"\0" * 64),
    "a name twice": gguf((), (tensor("a", (4,)), tensor("a", (4,))), data=b"\0" * 64),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_at_once(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(MpaError, match="not a valid GGUF file .*: copy it again, or rerun mpa-edge export") as caught:
        read_header(path)
    assert time.perf_counter() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    assert read_header(write(tmp_path, GOOD)).tensors[0].shape == (2, 4)
    for length in range(len(GOOD)):
        with pytest.raises(MpaError, match="not a valid GGUF file"):
            read_header(write(tmp_path, GOOD[:length]))


@pytest.mark.parametrize("bomb", ["numbers", "texts"])
def test_many_items_are_refused_within_a_second(bomb: str, tmp_path: Path) -> None:
    n = 700_000
    kind, body = (U8, b"\0" * n) if bomb == "numbers" else (TEXT, b"\0" * 8 * n)
    path = write(tmp_path, gguf(tuple(items(key, kind, n, body) for key in "abcd")))
    started = time.process_time()
    with pytest.raises(MpaError, match="too many items in lists"):
        read_header(path)
    assert time.process_time() - started < 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MpaError, match="cannot read .*nothing.gguf"):
        read_header(tmp_path / "nothing.gguf")
