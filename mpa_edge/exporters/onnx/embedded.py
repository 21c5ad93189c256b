"""One ONNX file from a graph and its weights without holding the weights: protobuf's own writer needs them thrice.

A message in protobuf is a row of fields, each a tag, a length and its bytes, in any order
(https://protobuf.dev/programming-guides/encoding). So the weights can be copied from file to file behind the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

LENGTH_DELIMITED = 2
COPIED_BYTES = 16_000_000


def varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first.

    >>> varint(300).hex()
    'ac02'
    """
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def head(field: int, n_bytes: int) -> bytes:
    """What stands before the bytes of a field."""
    return varint(field << 3 | LENGTH_DELIMITED) + varint(n_bytes)


def embed_weights(graph: Path, out: Path) -> None:
    """Write `graph`, whose weights lie in a file beside it, as one file: less than 2 GB, or no program reads it."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    weights = [_opened(tensor) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    body = model.graph.SerializeToString()
    model.ClearField("graph")
    field = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
    sizes = [len(start) + n_bytes for start, _, n_bytes in weights]
    total = len(body) + sum(len(head(field, size)) + size for size in sizes)
    with out.open("wb") as file:
        file.write(model.SerializeToString() + head(onnx.ModelProto.GRAPH_FIELD_NUMBER, total) + body)
        for (start, place, n_bytes), size in zip(weights, sizes, strict=True):
            file.write(head(field, size) + start)
            if place is not None:
                _copy(graph.parent / place[0], place[1], n_bytes, file)


def _opened(tensor: Any) -> tuple[bytes, tuple[str, int] | None, int]:
    """(bytes of a tensor up to its data, (file, offset) of the data, length of the data); a small one is whole."""
    import onnx

    if not tensor.external_data:
        return tensor.SerializeToString(), None, 0
    place = {entry.key: entry.value for entry in tensor.external_data}
    start = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    n_bytes = int(place["length"])
    raw = head(onnx.TensorProto.RAW_DATA_FIELD_NUMBER, n_bytes)
    return start.SerializeToString() + raw, (place["location"], int(place.get("offset", 0))), n_bytes


def _copy(source: Path, offset: int, n_bytes: int, file: IO[bytes]) -> None:
    with source.open("rb") as data:
        data.seek(offset)
        while n_bytes > 0:
            chunk = data.read(min(n_bytes, COPIED_BYTES))
            if not chunk:
                raise EOFError(f"{source} ends before its last tensor")
            file.write(chunk)
            n_bytes -= len(chunk)
