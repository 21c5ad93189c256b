"""Operations and bytes of encoding, prefill, decoding and training, and the seconds that they take on a device.

The roofline model of Williams et al. 2009 (doi 10.1145/1498765.1498785): a step takes as long as the slower of
computing and reading, at measured shares of the peaks, and at least as long as it takes to call its layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpa_edge.planning.model_specs import ImageTokens, Shapes
from mpa_edge.planning.records import Device, Efficiency

COPIES = 2
"""The cache of an image is read and written once for each row that continues from it."""


@dataclass(frozen=True)
class Machine:
    """A device and the share of its peaks that this program reaches."""

    name: str
    """As in `--device`."""
    device: Device
    efficiency: Efficiency

    def compute_s(self, flops: float, training: bool = False) -> float:
        """Seconds for that many floating point operations."""
        factor = self.efficiency.training if training else self.efficiency.prefill
        return flops / (self.device.flops * factor.value)

    def read_s(self, size_bytes: float) -> float:
        """Seconds to read that many bytes of memory."""
        return size_bytes / (self.device.memory_bandwidth * self.efficiency.memory.value)

    def step_s(self, work_s: float, layers: float) -> float:
        """Seconds of a pass through `layers` layers with `work_s` seconds of work: calls and work overlap on a GPU."""
        calls_s = layers * self.efficiency.layer_s.value
        return max(work_s, calls_s) if self.device.kind == "gpu" else work_s + calls_s


@dataclass(frozen=True)
class Batch:
    """Questions that are answered together."""

    rows: float
    images: float
    """Images encoded for them; those of an earlier batch are still in the cache."""
    prefix: float
    """Tokens of a prompt up to the end of its image: computed once an image."""
    tail: float
    """Tokens after it: computed for each row."""
    longest: float
    """Tokens of the longest reply, which is the number of steps."""
    written: float
    """Tokens of the mean reply; a finished row costs nothing more."""


@dataclass(frozen=True)
class Tuned:
    """What training changes."""

    parameters: int
    """Of the adapter, or all."""
    full: bool
    """All weights."""
    sees: bool
    """Whether part of the encoder or the connector is trained."""


def vision_flops(shapes: Shapes, image: ImageTokens) -> float:
    """To encode one image: a multiply and an add for each parameter and patch, and the attention inside a tile."""
    products = 2 * image.patches * (shapes.vision.matrices + shapes.patch_inputs * shapes.vision.hidden)
    attention = 4 * shapes.vision.layers * shapes.vision.hidden * image.patches**2 / image.tiles
    return products + attention + 2 * image.tokens * shapes.connector


def prompt_flops(shapes: Shapes, tokens: float, before: float = 0, logits: float = 1) -> float:
    """Of the language model over `tokens` tokens that follow `before` others, with logits for `logits` of them."""
    stack = shapes.language
    attention = 4 * stack.layers * stack.query * tokens * (before + tokens)
    return 2 * tokens * stack.matrices + attention + 2 * logits * shapes.head


def training_flops(
    shapes: Shapes, image: ImageTokens, tokens: float, what: Tuned, checkpointing: bool = False
) -> float:
    """Of the forward and backward pass of one sample with `tokens` tokens.

    A frozen matrix takes two products (forward, and the gradient of its input), a trained one three; an encoder that is
    not trained has no backward pass. With gradient checkpointing activations are computed a second time.
    """
    decoder, encoder = prompt_flops(shapes, tokens, logits=tokens), vision_flops(shapes, image)
    more = (2 if what.full else 1) + (1 if checkpointing else 0)
    adapter = 0.0 if what.full else 6 * what.parameters * tokens
    return decoder * (1 + more) + encoder * (1 + (more if what.sees else 0)) + adapter


def batch_seconds(shapes: Shapes, image: ImageTokens, batch: Batch, machine: Machine) -> float:
    """Seconds of a model for one batch: encoding, prefill and decoding."""
    vision, language, is_new = shapes.vision, shapes.language, bool(batch.images)
    vision_s = machine.compute_s(batch.images * vision_flops(shapes, image))
    prefill = batch.images * prompt_flops(shapes, batch.prefix, logits=0)
    prefill += batch.rows * prompt_flops(shapes, batch.tail, before=batch.prefix)

    # the prompt gives the first token
    steps, written = max(0.0, batch.longest - 1), max(0.0, batch.written - 1)
    context = batch.prefix + batch.tail + batch.written / 2
    decode = batch.rows * written * prompt_flops(shapes, 1, before=context)
    weights = steps * (language.matrices + shapes.head)
    cache = batch.rows * shapes.cache_numbers * (written * context + COPIES * batch.prefix)
    decode_s = max(machine.compute_s(decode), machine.read_s(machine.device.number_bytes * (weights + cache)))
    return (
        machine.step_s(vision_s, vision.layers * is_new)
        + machine.step_s(machine.compute_s(prefill), language.layers * (1 + is_new))
        + machine.step_s(decode_s, language.layers * steps)
    )
