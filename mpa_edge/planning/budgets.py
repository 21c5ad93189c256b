"""What a device can do for one model: limits of memory, first token and decoding, each with its arithmetic in words.

The roofline model (see `planning.roofline`): decoding reads all weights for each token, everything up to the first
token computes. A limit is a share of the board's peak, and a layer has a least time however small it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpa_edge.config.scheme import Component
from mpa_edge.config.target import BudgetName, Target
from mpa_edge.planning.memory import passing
from mpa_edge.planning.model_specs import ModelSpec, Shapes, Size
from mpa_edge.planning.records import assumptions
from mpa_edge.planning.roofline import prompt_flops, vision_flops

LAYER_S = 0.00015
"""Of a layer call: SmolLM2-135M with 30 layers takes 6 ms a token on an Orin Nano, which reads its weights in 2.4."""
TOKEN_S = 0.001
"""Of a token besides: it is chosen among all words and goes back in through Python. Tiny models wait for this."""
START_S = 0.02
"""Of a question: sampling, the tokenizer, Python."""
RUNTIME_BYTES, CUDA_BYTES = 150_000_000, 450_000_000
"""Libraries and their buffers; and the context of CUDA."""
MEMORY_ROOM = 1.25
"""Peak memory over what is counted here: 0.9 to 1.2 in docs/bench.json, where 8 and 4 bits of SmolVLM-256M were run."""
CACHE_BYTES, FLOAT_BYTES = 2, 4
"""Of a number in the key-value cache, and of one that is passed from layer to layer."""
DECODERS: tuple[Component, ...] = ("decoder", "language")
SHARES = {0.5: "half", 0.25: "a quarter"}


@dataclass(frozen=True)
class Work:
    """What a question about one image asks of the device that runs an export."""

    shapes: Shapes
    tiles: float
    """Pieces of the image that are encoded one by one."""
    tokens: float
    """Of the prompt: image and question."""
    operations: float
    """Up to the first token."""
    prepare_s: float
    """Of the image processor."""
    token_bytes: float
    """Weights and cache that are read for a token."""
    file_bytes: float
    """Of all weights."""
    cache_bytes: float
    """Keys and values of the whole context."""
    working_bytes: float
    """Of what passes from layer to layer while the image is encoded."""


@dataclass(frozen=True)
class Limit:
    """One budget."""

    value: float
    why: str
    """The arithmetic behind it, in words."""


def work_of(
    spec: ModelSpec, sizes: Sequence[Size], target: Target, files: Mapping[Component, int], context_tokens: int
) -> Work:
    """The work of a model on a target. UnknownModelError where an image's tokens cannot be computed.

    Args:
        spec: Sizes of the checkpoint, with the values of the image processor that was exported.
        sizes: Of the images that are asked about, pixels.
        target: Its bits a weight bound the bytes; its image budget is not looked at.
        files: Bytes of each exported component; empty: as many as the target's bits allow.
        context_tokens: Longest prompt with its answer.
    """
    shapes, image, assumed = spec.shapes, spec.image_tokens(sizes), assumptions("")  # of no task
    runtime_bytes = RUNTIME_BYTES + (CUDA_BYTES if "cuda" in target.accelerators else 0)
    tokens = image.tokens + assumed["answer_prompt_tokens"]
    weight_bytes, read = target.budgets.bits_per_weight / 8, shapes.language.matrices + shapes.head
    file_bytes = all_bytes = weight_bytes * shapes.parameters
    read_bytes = weight_bytes * read
    if files:
        file_bytes = min(all_bytes, sum(files.values()))
        # a GGUF has the tables that are only looked up as well, an ONNX decoder stands without them
        stored = read + (0 if shapes.tied else shapes.head) + shapes.looked_up if "language" in files else read
        read_bytes = min(read_bytes, sum(files.get(part, 0) for part in DECODERS) * read / stored)
    return Work(
        shapes=shapes,
        tiles=image.tiles,
        tokens=tokens,
        operations=vision_flops(shapes, image) + prompt_flops(shapes, tokens),
        prepare_s=assumed["prepare_s"] + assumed["prepare_s_per_pixel"] * image.pixels,
        token_bytes=read_bytes + CACHE_BYTES * shapes.cache_numbers * tokens,
        file_bytes=file_bytes,
        cache_bytes=CACHE_BYTES * shapes.cache_numbers * context_tokens,
        working_bytes=runtime_bytes + FLOAT_BYTES * image.patches * passing(shapes.vision),
    )


def limits(target: Target, work: Work | None) -> dict[BudgetName, Limit]:
    """The budgets of a target for one model; a limit that the target names itself counts before a derived one.

    `work`: None where the sizes of the model are not known; then there are only the target's own limits.
    """
    found = derived(target, work) if work else {}
    names: tuple[BudgetName, ...] = ("memory_bytes", "ttft_s", "tokens_per_s")
    for name in names:
        if (value := getattr(target.budgets, name)) is not None:
            found[name] = Limit(value, "set in the target")
    return {name: found[name] for name in names if name in found}


def derived(target: Target, work: Work) -> dict[BudgetName, Limit]:
    """The budgets as shares of the board's peaks."""
    board, budgets, shapes = target.board, target.budgets, work.shapes
    layers = shapes.language.layers
    read_s = work.token_bytes / (budgets.bandwidth_share * board.bandwidth_bytes_per_s)
    compute_s = work.operations / (budgets.operations_share * board.operations_per_s)
    other_s = START_S + work.prepare_s + (shapes.vision.layers + layers) * LAYER_S
    need_bytes = MEMORY_ROOM * (work.file_bytes + work.cache_bytes + work.working_bytes)
    most_bytes = budgets.memory_share * board.memory_bytes
    tiles = "" if work.tiles == 1 else f" in {work.tiles:.0f} tiles"
    if need_bytes <= most_bytes:
        parts = (work.file_bytes, "of weights"), (work.cache_bytes, "of cache"), (work.working_bytes, "to work in")
        memory = f"{MEMORY_ROOM:g} times " + " + ".join(f"{scaled(size)}B {what}" for size, what in parts)
    else:
        memory = f"{share(budgets.memory_share)} {scaled(board.memory_bytes)}B"
    return {
        "memory_bytes": Limit(min(need_bytes, most_bytes), memory),
        "ttft_s": Limit(
            compute_s + other_s,
            f"{share(budgets.operations_share)} {scaled(board.operations_per_s)}OP/s over "
            f"{scaled(work.operations)}OP for an image{tiles} and {work.tokens:.0f} tokens, and {other_s:.2g} s",
        ),
        "tokens_per_s": Limit(
            1 / (read_s + layers * LAYER_S + TOKEN_S),
            f"{share(budgets.bandwidth_share)} {scaled(board.bandwidth_bytes_per_s)}B/s over "
            f"{scaled(work.token_bytes)}B a token, {layers} layers of {1000 * LAYER_S:g} ms, and {1000 * TOKEN_S:g} ms",
        ),
    }


def share(value: float) -> str:
    """A share before what it is of.

    >>> share(0.5), share(0.35)
    ('half of', '35 % of')
    """
    return f"{SHARES.get(value, f'{100 * value:.0f} %')} of"


def scaled(value: float) -> str:
    """Two significant digits or a whole number, with the prefix of a unit.

    >>> scaled(68.0e9), scaled(4.84e8), scaled(10.0e12), scaled(2.61e6)
    ('68 G', '0.48 G', '10 T', '2.6 M')
    """
    units = (1e12, 1e12, "T"), (1e8, 1e9, "G"), (1e5, 1e6, "M"), (0, 1e3, "k")
    factor, prefix = next((factor, prefix) for least, factor, prefix in units if value >= least)
    return f"{value / factor:,.0f} {prefix}" if value >= 10 * factor else f"{value / factor:.2g} {prefix}"
