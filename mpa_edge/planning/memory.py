"""Peak memory of a stage: weights, cache, activations, gradients and optimiser states.

Activations kept for the backward pass follow Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) for an attention
that keeps no scores, counted for gated and plain MLPs and for fewer key-value heads.
"""

from __future__ import annotations

from collections.abc import Callable

from mpa_edge.config.recipe import LevelConfig
from mpa_edge.planning.model_specs import ImageTokens, Shapes, Stack
from mpa_edge.planning.roofline import COPIES, Batch, Machine, Tuned

LIBRARIES_BYTES = {"cpu": 1_150_000_000, "gpu": 700_000_000}
"""CPU: torch, transformers, trl and what the allocator keeps (docs/results.json, 3 seeds); GPU: the CUDA context."""
USABLE = 0.92
"""Share of the memory that can be used before the allocator fails."""
SHARE_OF_FREE = 0.25
"""Of what the weights leave: for images in the encoder, and the same again for their cached keys and values."""
FLOAT_BYTES = 4
NF4_BYTES = (4 + 0.127) / 8
MOMENTS = 2


def tuned(shapes: Shapes, level: LevelConfig) -> Tuned:
    """What a recipe trains: two thin matrices beside each tuned one, or everything."""
    if level.method == "full":
        return Tuned(shapes.parameters, full=True, sees=True)

    def edges(stack: Stack) -> int:
        """Inputs and outputs of all matrices; an adapter has its rank times as many parameters."""
        attention = 2 * (stack.hidden + stack.query) + 2 * (stack.hidden + stack.key_value)
        return stack.layers * (attention + (3 if stack.gated else 2) * (stack.hidden + stack.ffn))

    parts = {
        "language": edges(shapes.language),
        "vision": edges(shapes.vision),
        "connector": shapes.connector // shapes.language.hidden + shapes.language.hidden,
    }
    parameters = level.rank * sum(parts[part] for part in level.targets)
    return Tuned(parameters, full=False, sees=bool({"vision", "connector"} & set(level.targets)))


def passing(stack: Stack) -> int:
    """Activations of one token that exist at once in a forward pass without gradients."""
    return 4 * stack.hidden + max(stack.query + 2 * stack.key_value, (3 if stack.gated else 2) * stack.ffn)


def kept(stack: Stack, checkpointing: bool = False) -> int:
    """Activations of one token kept for the backward pass; with checkpointing the layers' inputs and one layer."""
    layer = 8 * stack.hidden + 3 * stack.query + 4 * stack.key_value + (4 if stack.gated else 2) * stack.ffn
    return stack.layers * stack.hidden + layer if checkpointing else stack.layers * layer


def answering_bytes(shapes: Shapes, image: ImageTokens, batch: Batch, machine: Machine) -> float:
    """Peak while one batch after the other is answered.

    Images are encoded in portions and old ones leave the cache, so each takes at most its share of the free memory.
    """
    number, language = machine.device.number_bytes, shapes.language
    held = LIBRARIES_BYTES[machine.device.kind] + shapes.parameters * number
    share = SHARE_OF_FREE * max(0.0, USABLE * machine.device.memory_bytes - held)
    one = 3 * image.pixels + image.patches * passing(shapes.vision) + batch.prefix * passing(language)
    encoding = max(one * number, min(batch.images * one * number, share))
    cached_images = min(share, batch.images * batch.prefix * shapes.cache_numbers * number)
    cache = batch.rows * (batch.prefix + batch.tail + batch.longest) * shapes.cache_numbers * number
    tails = batch.rows * batch.tail * passing(language) * number
    logits = batch.rows * shapes.vocabulary * (number + FLOAT_BYTES)
    return held + cached_images + max(encoding, COPIES * cache + tails + logits)


def training_bytes(
    shapes: Shapes, image: ImageTokens, tokens: float, at_once: int, what: Tuned, level: LevelConfig, kind: str
) -> float:
    """Peak with `at_once` samples in memory: weights, gradients, moments, activations and logits.

    Trained weights are fp32, frozen ones bf16 on a GPU. With `level.quantize` the language model takes 4.127 bits a
    parameter (arXiv 2305.14314, section 3), and peft turns the rest into fp32.
    """
    half = level.method == "lora" and kind == "gpu" and level.precision != "fp32"
    weights: float = shapes.parameters * (2 if half else FLOAT_BYTES)
    if level.quantize:
        matrices = shapes.language.matrices
        weights = NF4_BYTES * matrices + FLOAT_BYTES * (shapes.parameters - matrices)
    # gradients and moments; for an adapter its own weights as well
    states = what.parameters * FLOAT_BYTES * (1 + MOMENTS if what.full else 2 + MOMENTS)
    number = 2 if level.precision == "bf16" or (level.precision == "auto" and kind == "gpu") else FLOAT_BYTES
    again = level.gradient_checkpointing
    decoder = tokens * kept(shapes.language, again) * number
    encoder = image.patches * (kept(shapes.vision, again) if what.sees else passing(shapes.vision)) * number
    # Liger's loss never holds the logits
    logits = 0.0 if level.liger else tokens * shapes.vocabulary * (number + 2 * FLOAT_BYTES)
    sample = decoder + encoder + logits + 3 * image.pixels * number
    return LIBRARIES_BYTES[kind] + weights + states + at_once * sample


def largest_that_fits(size: int, need_bytes: Callable[[int], float], limit_bytes: float) -> int:
    """The size, or the first of its halves that stays within the limit; 1 if none does.

    >>> largest_that_fits(48, lambda size: 3.0 * size, 60.0)
    12
    """
    while size > 1 and need_bytes(size) > limit_bytes:
        size //= 2
    return size
