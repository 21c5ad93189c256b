"""Seconds and bytes of each stage on one machine, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mpa_edge.config.recipe import Recipe
from mpa_edge.planning.counts import CHUNK, Counts, Figure, Prompts, batches, prompt_tokens
from mpa_edge.planning.image_tokens import Seen
from mpa_edge.planning.memory import (
    FLOAT_BYTES,
    LIBRARIES_BYTES,
    USABLE,
    Tuned,
    answering_bytes,
    largest_that_fits,
    training_bytes,
)
from mpa_edge.planning.model_specs import BYTES_ON_DISK, KnownModel
from mpa_edge.planning.records import Assumptions, Factor, Price
from mpa_edge.planning.roofline import (
    Batch,
    BatchSeconds,
    Machine,
    batch_seconds,
    prompt_flops,
    training_flops,
    vision_flops,
)

HOUR_S = 3600.0


@dataclass(frozen=True)
class Work:
    """Everything that does not depend on the machine."""

    recipe: Recipe
    counts: Counts
    prompts: Prompts
    teacher: KnownModel
    student: KnownModel
    teacher_sees: Seen
    """The mean picture as the teacher takes it."""
    student_sees: Seen
    """The mean picture as the student takes it."""
    tuned: Tuned
    assumed: Assumptions


@dataclass(frozen=True)
class StagePlan:
    """One stage on one machine."""

    stage: str
    seconds: float
    """Expected."""
    memory_bytes: float
    """Peak, on the GPU where there is one."""
    at_once: int
    """Rows in one batch that fit; the recipe's number, or a half of it as often as needed."""
    figures: tuple[Figure, ...]
    """How all of it came about."""
    usd: float = 0.0
    """What a hosted teacher's tokens cost."""


@dataclass(frozen=True)
class MachinePlan:
    """A whole run on one machine."""

    machine: Machine
    """Where it runs."""
    price: Price | None
    """What an hour of it costs."""
    stages: tuple[StagePlan, ...]
    start_s: float

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.start_s + sum(stage.seconds for stage in self.stages)

    @property
    def memory_bytes(self) -> float:
        """Of the largest stage."""
        return max(stage.memory_bytes for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether every stage finds room, with smaller batches where needed."""
        return self.memory_bytes <= USABLE * self.machine.device.memory_bytes

    @property
    def usd(self) -> float | None:
        """What the machine costs for that long, and a hosted teacher; None without prices, or where it does not fit."""
        tokens = sum(stage.usd for stage in self.stages)
        if not self.fits or (self.price is None and not tokens):
            return None
        return tokens + (self.seconds / HOUR_S * self.price.usd_per_hour if self.price else 0.0)


def on_machine(work: Work, machine: Machine, price: Price | None = None) -> MachinePlan:
    """The plan of all stages on one machine."""
    stages = [_annotate(work, machine), _identify(work, machine), _level(work, machine), _merge(work, machine)]
    if work.counts.questions:
        stages.append(_evaluate(work, machine))
    return MachinePlan(machine, price or machine.device.price, tuple(stages), work.assumed["start_s"])


@dataclass(frozen=True)
class Asking:
    """One model, one kind of question."""

    name: str
    model: KnownModel
    seen: Seen
    rows: float
    groups: float
    """Shards or chunks: each starts a new batch."""
    per_picture: float
    """Questions about one picture."""
    size: int
    """Rows in one batch, as the recipe has it."""
    text: float
    """Tokens of text in the prompt."""
    longest: float
    """Tokens of the longest reply; of the mean one behind a server, which fills gaps at once."""
    written: float
    """Tokens of the mean reply."""
    new_pictures: bool = True
    """Whether they are seen for the first time."""


def _ask(asking: Asking, work: Work, machine: Machine) -> StagePlan:
    """Loading a model, and all batches of one kind of question."""
    if asking.model.server:
        asking = replace(asking, size=work.recipe.teacher_server.concurrency, longest=asking.written)
        if work.recipe.teacher_server.price_in is not None:
            return _hosted(asking, work, machine)
    shapes, number, limit = asking.model.shapes, machine.device.number_bytes, USABLE * machine.device.memory_bytes
    machine = _served(machine) if asking.model.server else machine

    def need(size: int) -> float:
        return answering_bytes(shapes, asking.seen, _batch(asking, size), machine.device.kind, number, limit)

    size = largest_that_fits(asking.size, need, limit)
    n = batches(asking.rows, asking.groups, size)
    batch = _batch(asking, asking.rows / n if n else size)
    prepare = work.assumed["prepare_s"] + work.assumed["prepare_s_per_pixel"] * asking.seen.pixels
    each = batch_seconds(shapes, asking.seen, batch, machine, prepare, number)
    load = _load_s(work, asking.model)
    seconds = n * (max(each.prepare, each.model) if _ahead(machine) else each.prepare + each.model)
    memory = Figure(
        f"{asking.name}.memory",
        need(size),
        "bytes",
        f"libraries + {number} bytes x {shapes.parameters} parameters + pictures on their way + cache of {size} rows",
    )
    figures = (*_time_figures(asking, batch, each, n, load, machine), memory)
    return StagePlan(asking.name, load + seconds, need(size), size, figures)


def _ahead(machine: Machine) -> bool:
    """Whether pictures are prepared by a second thread: where the model does not keep all cores busy."""
    return machine.device.kind == "gpu"


def _hosted(asking: Asking, work: Work, machine: Machine) -> StagePlan:
    """Questions to a server that is paid by the token: its speed is not ours to compute."""
    server, request_s = work.recipe.teacher_server, work.assumed["request_s"]
    read, written = asking.rows * prompt_tokens(asking.seen, asking.text), asking.rows * asking.written
    seconds = asking.rows * request_s / asking.size
    price_in, price_out = server.price_in or 0.0, server.price_out or 0.0
    usd = (read * price_in + written * price_out) / 1e6
    formula = (
        f"({read:.4g} tokens in x {price_in:g} + {written:.4g} tokens out x {price_out:g}) / 1e6, prices of the recipe"
    )
    figures = (
        Figure(f"{asking.name}.requests", seconds, "s", f"{asking.rows:g} x request_s / {asking.size} at once"),
        Figure(f"{asking.name}.tokens", usd, "USD", formula),
    )
    return StagePlan(asking.name, seconds, LIBRARIES_BYTES[machine.device.kind], asking.size, figures, usd)


def _served(machine: Machine) -> Machine:
    """A server captures its steps as graphs: calling a layer takes no time of its own."""
    none = Factor(value=0.0, where="a server runs whole steps as graphs")
    return replace(machine, efficiency=machine.efficiency.model_copy(update={"layer_s": none}))


def _time_figures(
    asking: Asking, batch: Batch, each: BatchSeconds, n: float, load_s: float, machine: Machine
) -> Iterator[Figure]:
    """Where the time of all batches goes, with the formulas of `batch_seconds`."""
    shapes, name = asking.model.shapes, asking.name
    plus = "at least" if machine.device.kind == "gpu" else "plus"
    vision, language = (f"{plus} {stack.layers} layers x layer_s" for stack in (shapes.vision, shapes.language))
    compute, read = "operations / (flops x prefill)", "bytes / (memory_bandwidth x memory)"
    weights, pixels = f"2 bytes x {shapes.parameters} parameters", f"{asking.seen.pixels:g} pixels"
    ahead = ", while the model works" if _ahead(machine) else ""
    begin = f"{n} batches x {batch.pictures:.4g} pictures"
    tails = f"{batch.rows:.4g} rows of {batch.tail:.4g}"
    replies = f"{n} batches x {batch.rows:.4g} rows of {batch.written:g} tokens in {batch.longest:g} steps"
    formulas = {
        "load": f"load_s + {weights} / load_bytes_per_s",
        "prepare": f"{begin} x (prepare_s + prepare_s_per_pixel x {pixels}){ahead}",
        "vision": f"{begin} of {asking.seen.patches:g} patches: {compute}, {vision}",
        "prefill": f"{begin} of {batch.prefix:.4g} tokens, {tails} behind them: {compute}, {language}",
        "decode": f"{replies}: the longer of {compute} and {read}, {language} and step",
    }
    for part, formula in formulas.items():
        yield Figure(f"{name}.{part}", load_s if part == "load" else n * getattr(each, part), "s", formula)


def _batch(asking: Asking, rows: float) -> Batch:
    """What one batch of so many rows holds."""
    pictures = min(float(rows), max(1.0, rows / asking.per_picture)) if asking.new_pictures else 0.0
    prefix = asking.seen.tokens + asking.seen.marks
    return Batch(float(rows), pictures, prefix, asking.text, asking.longest, asking.written)


def _annotate(work: Work, machine: Machine) -> StagePlan:
    """Questions with answers, then the votes: the same model about the same pictures, which it has seen already."""
    config, made = work.recipe.annotate, work.counts
    write = Asking(
        "annotate",
        work.teacher,
        work.teacher_sees,
        made.asked,
        made.images / config.shard_size,
        config.samples_per_image,
        config.batch_size,
        work.prompts.annotate,
        work.prompts.annotation_longest,
        work.prompts.annotation,
    )
    parts = [_ask(write, work, machine)]
    if config.votes:
        votes = replace(_votes(work, "annotate.votes", config.votes, config.batch_size), new_pictures=False)
        parts.append(_ask(votes, work, machine))
    return _joined("annotate", parts, loads=1, load_s=_load_s(work, work.teacher))


def _votes(work: Work, name: str, votes: int, size: int) -> Asking:
    made = work.counts
    return Asking(
        name,
        work.teacher,
        work.teacher_sees,
        made.annotated * votes,
        made.images / work.recipe.annotate.shard_size,
        votes * made.annotated / max(1, made.images),
        size,
        work.prompts.answer,
        work.prompts.answer_longest,
        work.prompts.completion,
    )


def _identify(work: Work, machine: Machine) -> StagePlan:
    """The student answers what was verified; the teacher first, where annotate took no votes."""
    recipe, made = work.recipe, work.counts
    student = Asking(
        "identify",
        work.student,
        work.student_sees,
        made.verified,
        made.images / recipe.annotate.shard_size,
        made.verified / max(1, made.images),
        recipe.identify.batch_size,
        work.prompts.answer,
        work.prompts.answer_longest,
        work.prompts.completion,
    )
    parts = [_ask(student, work, machine)]
    if not recipe.annotate.votes:
        parts.append(_ask(_votes(work, "identify.teacher", 1, recipe.identify.batch_size), work, machine))
    return _joined("identify", parts, loads=len(parts), load_s=0.0)


def _evaluate(work: Work, machine: Machine) -> StagePlan:
    """Teacher, base and aligned on the same questions."""
    models = (
        ("teacher", work.teacher, work.teacher_sees),
        ("base", work.student, work.student_sees),
        ("aligned", work.student, work.student_sees),
    )
    n, size = work.counts.questions, work.recipe.evaluate.batch_size
    parts = [
        _ask(
            Asking(
                f"evaluate.{name}",
                model,
                seen,
                n,
                n / CHUNK,
                1,
                size,
                work.prompts.answer,
                work.prompts.answer_longest,
                work.prompts.completion,
            ),
            work,
            machine,
        )
        for name, model, seen in models
    ]
    return _joined("evaluate", parts, loads=len(parts), load_s=0.0)


def _load_s(work: Work, model: KnownModel) -> float:
    return work.assumed["load_s"] + BYTES_ON_DISK * model.shapes.parameters / work.assumed["load_bytes_per_s"]


def _joined(stage: str, parts: Sequence[StagePlan], loads: int, load_s: float) -> StagePlan:
    """Parts one after the other; a model that stays is loaded `loads` times, not once a part."""
    spared = (len(parts) - loads) * load_s if not any(part.usd for part in parts) else 0.0
    figures = tuple(figure for part in parts for figure in part.figures)
    seconds = sum(part.seconds for part in parts) - spared
    memory, at_once = max(part.memory_bytes for part in parts), min(part.at_once for part in parts)
    return StagePlan(stage, seconds, memory, at_once, figures, sum(part.usd for part in parts))


def _level(work: Work, machine: Machine) -> StagePlan:
    """Optimiser steps, and the held-out slice every eval_steps."""
    config, made, shapes, seen = work.recipe.level, work.counts, work.student.shapes, work.student_sees
    tokens = prompt_tokens(seen, work.prompts.answer) + work.prompts.completion
    kind = machine.device.kind

    def need(size: int) -> float:
        return training_bytes(shapes, seen, tokens, size, work.tuned, config, kind)

    at_once = largest_that_fits(config.batch_size, need, USABLE * machine.device.memory_bytes)
    what = work.tuned
    flops = training_flops(
        shapes, seen, tokens, what.parameters, full=what.full, sees=what.sees, again=config.gradient_checkpointing
    )
    layers = 3 * (shapes.vision.layers + shapes.language.layers) * config.batch_size / at_once
    prepare = work.assumed["prepare_s"] + work.assumed["prepare_s_per_pixel"] * seen.pixels
    step = machine.step_s(machine.compute_s(config.batch_size * flops, training=True), layers)
    step += config.batch_size * prepare
    looks = made.steps // config.eval_steps if made.held_out else 0.0
    forward = machine.compute_s(vision_flops(shapes, seen) + prompt_flops(shapes, tokens, logits=tokens)) + prepare
    load = _load_s(work, work.student)
    figures = (
        Figure(
            "level.step",
            step,
            "s",
            f"{config.batch_size} samples x ({flops:.4g} operations of {tokens:.4g} tokens "
            f"and {seen.patches:g} patches / (flops x training) + preparing the picture)",
        ),
        Figure(
            "level.train",
            made.steps * step,
            "s",
            f"{made.steps:g} steps x {step:.4g} s; without early stopping "
            f"{made.steps_at_most:g} steps, {made.steps_at_most * step:.4g} s",
        ),
        Figure(
            "level.held_out",
            looks * made.held_out * forward,
            "s",
            f"every {config.eval_steps} steps {made.held_out:g} samples x {forward:.4g} s",
        ),
        Figure(
            "level.memory",
            need(at_once),
            "bytes",
            f"libraries + weights of {shapes.parameters} parameters + "
            f"gradients and moments of {what.parameters} + what {at_once} samples keep for the way back",
        ),
    )
    seconds = load + made.steps * step + looks * made.held_out * forward
    return StagePlan("level", seconds, need(at_once), at_once, figures)


def _merge(work: Work, machine: Machine) -> StagePlan:
    """On the CPU, whatever the device: fp32 weights are read, hashed and written several times."""
    size, passes = FLOAT_BYTES * work.student.shapes.parameters, work.assumed["merge_passes"]
    seconds = work.assumed["load_s"] + passes * size / work.assumed["load_bytes_per_s"]
    memory = LIBRARIES_BYTES["cpu"] + 2 * size if machine.device.kind == "cpu" else 0.0
    figures = (Figure("merge", seconds, "s", f"load_s + {passes:g} passes x {size} bytes / load_bytes_per_s"),)
    return StagePlan("merge", seconds, memory, 1, figures)


def figures_of(plan: MachinePlan) -> Iterator[Figure]:
    """All figures of one machine, its totals last."""
    for stage in plan.stages:
        yield from stage.figures
    yield Figure("total", plan.seconds, "s", "all stages + start_s")
    if plan.usd is not None:
        price = plan.price
        whose = f"{price.usd_per_hour} USD ({price.offer}, {price.date}, {price.source})" if price else "no price"
        yield Figure(
            "cost", plan.usd, "USD", f"{plan.seconds / HOUR_S:.4g} h x {whose}, and tokens of a hosted teacher"
        )
