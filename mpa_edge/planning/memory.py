"""Bytes that a stage holds at its peak: weights, cache, what flows through the layers, gradients and moments.

Numbers kept for the backward pass follow Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) for an attention that
keeps no scores, counted for gated and plain MLPs and for fewer key-value heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.planning.image_tokens import Seen
from mpa_edge.planning.roofline import COPIES, Batch
from mpa_edge.planning.shapes import Shapes, Stack

LIBRARIES_BYTES = {"cpu": 1_150_000_000, "gpu": 700_000_000}
"""torch, transformers, trl and what the C library keeps (docs/results.json, 3 seeds); on a GPU the driver's context."""
USABLE = 0.92
"""Share of a GPU's memory that can be had before the allocator gives up."""
SHARE_OF_FREE = 0.25
"""Of what the weights leave: for pictures on their way through the encoder, and for what is kept of them."""
FLOAT_BYTES = 4
NF4_BYTES = (4 + 0.127) / 8
MOMENTS = 2


@dataclass(frozen=True)
class Tuned:
    """What training changes."""

    parameters: int
    """Of the adapter, or all."""
    full: bool
    """All weights."""
    sees: bool
    """Whether something of the encoder or the connector is among them."""


def tuned(shapes: Shapes, level: LevelConfig) -> Tuned:
    """Parameters that the recipe trains: two thin matrices beside each tuned one, or everything."""
    if level.method == "full":
        return Tuned(shapes.parameters, full=True, sees=True)
    parts = {
        "language": _adapter_edges(shapes.language),
        "vision": _adapter_edges(shapes.vision),
        "connector": shapes.connector // shapes.language.hidden + shapes.language.hidden,
    }
    edges = sum(parts[part] for part in level.targets)
    return Tuned(level.rank * edges, full=False, sees=bool({"vision", "connector"} & set(level.targets)))


def _adapter_edges(stack: Stack) -> int:
    """Inputs and outputs of all matrices of a stack: an adapter has its rank times as many parameters."""
    attention = 2 * (stack.hidden + stack.query) + 2 * (stack.hidden + stack.key_value)
    return stack.layers * (attention + (3 if stack.gated else 2) * (stack.hidden + stack.ffn))


def passing(stack: Stack) -> int:
    """Numbers of one token that are alive at once while one layer runs without gradients."""
    return 4 * stack.hidden + max(stack.query + 2 * stack.key_value, (3 if stack.gated else 2) * stack.ffn)


def kept(stack: Stack, again: bool = False) -> int:
    """Numbers of one token that all layers keep for the backward pass.

    Where they are computed `again` (gradient checkpointing): what goes into each layer, and all of one layer.
    """
    attention = 3 * stack.query + 4 * stack.key_value
    layer = 8 * stack.hidden + attention + (4 if stack.gated else 2) * stack.ffn
    return stack.layers * stack.hidden + layer if again else stack.layers * layer


def weights_bytes(shapes: Shapes, level: LevelConfig, kind: str) -> float:
    """The student's own weights while it is trained.

    Those that are trained are fp32; frozen ones bf16 on a GPU. With `quantize` the language model has four bits, and
    peft turns the rest into fp32 (arXiv 2305.14314, section 3: 0.127 bits a parameter for the scales).
    """
    if level.quantize:
        return NF4_BYTES * shapes.language.matrices + FLOAT_BYTES * (shapes.parameters - shapes.language.matrices)
    half = level.method == "lora" and kind == "gpu" and level.precision != "fp32"
    return shapes.parameters * (2 if half else FLOAT_BYTES)


def answering_bytes(
    shapes: Shapes, seen: Seen, batch: Batch, kind: str, number_bytes: int, limit_bytes: float
) -> float:
    """Peak of answering one batch after the other, where the machine has `limit_bytes`.

    Pictures are seen in portions and what is kept of them is forgotten, so that either takes its share of what is free.
    """
    held = LIBRARIES_BYTES[kind] + shapes.parameters * number_bytes
    share = SHARE_OF_FREE * max(0.0, limit_bytes - held)
    picture = 3 * seen.pixels + seen.patches * passing(shapes.vision) + batch.prefix * passing(shapes.language)
    portion = max(picture * number_bytes, min(batch.pictures * picture * number_bytes, share))
    kept_of_pictures = min(share, batch.pictures * batch.prefix * shapes.cache_numbers * number_bytes)
    tails = batch.rows * batch.tail * passing(shapes.language) * number_bytes
    cache = batch.rows * (batch.prefix + batch.tail + batch.longest) * shapes.cache_numbers * number_bytes
    logits = batch.rows * shapes.vocabulary * (number_bytes + FLOAT_BYTES)
    return held + kept_of_pictures + max(portion, COPIES * cache + tails + logits)


def training_bytes(
    shapes: Shapes, seen: Seen, tokens: float, at_once: int, what: Tuned, level: LevelConfig, kind: str
) -> float:
    """Peak of training with so many samples in memory at once: weights, gradients, moments, kept numbers, logits."""
    number = 2 if level.precision == "bf16" or (level.precision == "auto" and kind == "gpu") else FLOAT_BYTES
    # of all weights: gradients and moments beside them; of an adapter its own weights, too
    states = what.parameters * FLOAT_BYTES * (1 + MOMENTS if what.full else 2 + MOMENTS)
    again = level.gradient_checkpointing
    decoder = tokens * kept(shapes.language, again) * number
    encoder = seen.patches * (kept(shapes.vision, again) if what.sees else passing(shapes.vision)) * number
    # Liger's loss never holds the logits
    logits = 0.0 if level.liger else tokens * shapes.vocabulary * (number + 2 * FLOAT_BYTES)
    sample = decoder + encoder + logits + 3 * seen.pixels * number
    return LIBRARIES_BYTES[kind] + weights_bytes(shapes, level, kind) + states + at_once * sample


def largest_that_fits(size: int, need_bytes: Callable[[int], float], limit_bytes: float) -> int:
    """The size, or the first of its halves that stays within the limit; 1 where none does.

    >>> largest_that_fits(32, lambda size: 3.0 * size, 60.0)
    16
    """
    return next((at for at in halves(size) if need_bytes(at) <= limit_bytes), 1)


def halves(size: int) -> list[int]:
    """A size and its halves down to one, as the program tries them when memory runs out.

    >>> halves(48)
    [48, 24, 12, 6, 3, 1]
    """
    found = [size]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found
