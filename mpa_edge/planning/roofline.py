"""Operations and bytes of encoding, prefill, decoding and training, and the seconds that a device takes for them.

The roofline of Williams et al. 2009 (doi 10.1145/1498765.1498785): a step takes as long as the slower of computing and
reading, at the shares of the peaks that were measured, and no less than its layers take to be called.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpa_edge.planning.image_tokens import Seen
from mpa_edge.planning.records import Device, Efficiency
from mpa_edge.planning.shapes import Shapes

COPIES = 2  # what is kept of a picture is read and written once for each row that begins behind it


@dataclass(frozen=True)
class Machine:
    """A device with what it reaches."""

    name: str
    """As `--device` has it."""
    device: Device
    """Peaks."""
    efficiency: Efficiency
    """Shares of them."""

    def compute_s(self, flops: float, training: bool = False) -> float:
        """Seconds for so many operations in large products."""
        factor = self.efficiency.training if training else self.efficiency.prefill
        return flops / (self.device.flops * factor.value)

    def read_s(self, size_bytes: float) -> float:
        """Seconds to read so many bytes of memory."""
        return size_bytes / (self.device.memory_bandwidth * self.efficiency.memory.value)

    def step_s(self, work_s: float, layers: float) -> float:
        """Seconds of one pass through so many layers that do work for `work_s`.

        A CPU calls a layer and then does its work; a GPU is still at work while the next ones are called.
        """
        calls_s = layers * self.efficiency.layer_s.value
        return max(work_s, calls_s) if self.device.kind == "gpu" else work_s + calls_s


@dataclass(frozen=True)
class Batch:
    """Questions that are answered together."""

    rows: float
    """How many."""
    pictures: float
    """Pictures that are seen for them; what an earlier batch has seen is not seen again."""
    prefix: float
    """Tokens of a prompt up to its picture's last one: computed once a picture."""
    tail: float
    """Tokens behind it: computed for each row."""
    longest: float
    """Tokens of the longest reply: so many steps are made."""
    written: float
    """Tokens of the mean reply: a row that has ended takes no part."""


@dataclass(frozen=True)
class BatchSeconds:
    """Where the time of one batch goes."""

    prepare: float
    """Pictures through the image processor, on the CPU."""
    vision: float
    """The encoder."""
    prefill: float
    """The prompts."""
    decode: float
    """The replies."""

    @property
    def model(self) -> float:
        """All but the preparing."""
        return self.vision + self.prefill + self.decode


def vision_flops(shapes: Shapes, seen: Seen) -> float:
    """Operations to encode one picture: a multiply and an add for each parameter and patch, and the attention."""
    vision, each = shapes.vision, seen.patches / seen.sequences
    products = 2 * seen.patches * (vision.matrices + shapes.patch_inputs * vision.hidden)
    whole = shapes.full_layers * seen.patches * each
    windows = (vision.layers - shapes.full_layers) * seen.patches * min(each, shapes.window_patches or each)
    return products + 4 * vision.hidden * (whole + windows) + 2 * seen.tokens * shapes.connector


def prompt_flops(shapes: Shapes, tokens: float, before: float = 0, logits: float = 1) -> float:
    """Operations of the decoder over so many tokens behind `before` others, with logits for some of them."""
    stack = shapes.language
    attention = 4 * stack.layers * stack.query * tokens * (before + tokens)
    return 2 * tokens * stack.matrices + attention + 2 * logits * shapes.head


def prefill_flops(shapes: Shapes, batch: Batch) -> float:
    """Operations of all prompts of a batch: each picture once, each row's own text."""
    pictures = batch.pictures * prompt_flops(shapes, batch.prefix, logits=0)
    return pictures + batch.rows * prompt_flops(shapes, batch.tail, before=batch.prefix)


def decode_flops(shapes: Shapes, batch: Batch) -> float:
    """Operations of all tokens of all replies but the first, which the prompt gives."""
    seen = batch.prefix + batch.tail + batch.written / 2
    return batch.rows * max(0.0, batch.written - 1) * prompt_flops(shapes, 1, before=seen)


def decode_bytes(shapes: Shapes, batch: Batch, number_bytes: int) -> float:
    """Bytes that decoding reads: the weights in each step, each row's cache for each of its tokens, and the copies."""
    seen = batch.prefix + batch.tail + batch.written / 2
    weights = max(0.0, batch.longest - 1) * (shapes.language.matrices + shapes.head)
    cache = batch.rows * shapes.cache_numbers * (max(0.0, batch.written - 1) * seen + COPIES * batch.prefix)
    return number_bytes * (weights + cache)


def batch_seconds(
    shapes: Shapes, seen: Seen, batch: Batch, machine: Machine, prepare_s: float, number_bytes: int
) -> BatchSeconds:
    """Seconds of one batch; `prepare_s` is for one picture."""
    vision, language = shapes.vision.layers, shapes.language.layers
    work_s = max(
        machine.compute_s(decode_flops(shapes, batch)), machine.read_s(decode_bytes(shapes, batch, number_bytes))
    )
    # a second pass for the pictures, where there are new ones
    passes = 2 if batch.pictures else 1
    return BatchSeconds(
        prepare=batch.pictures * prepare_s,
        vision=machine.step_s(machine.compute_s(batch.pictures * vision_flops(shapes, seen)), vision * (passes - 1)),
        prefill=machine.step_s(machine.compute_s(prefill_flops(shapes, batch)), language * passes),
        decode=machine.step_s(work_s, language * max(0.0, batch.longest - 1)),
    )


def training_flops(
    shapes: Shapes, seen: Seen, tokens: float, tuned: float, *, full: bool, sees: bool, again: bool = False
) -> float:
    """Operations of one sample, forwards and backwards.

    A frozen matrix costs two products (forwards, and backwards to what came in), a trained one three; `tuned` counts
    the parameters of an adapter. The encoder goes forwards only where nothing of it or of the connector is trained.
    `again`: what the layers do not keep is computed once more.
    """
    decoder, encoder = prompt_flops(shapes, tokens, logits=tokens), vision_flops(shapes, seen)
    more = (2 if full else 1) + (1 if again else 0)
    adapter = 0.0 if full else 6 * tuned * tokens
    return decoder * (1 + more) + encoder * (1 + (more if sees else 0)) + adapter
