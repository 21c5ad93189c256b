"""A recipe, its images and machines -> seconds, memory, disk and cost. Nothing is loaded, downloaded or written."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.evaluation.answer_log import CHUNK
from mpa_edge.images.folder import open_image, scan
from mpa_edge.images.index import ImageEntry
from mpa_edge.planning.counts import Counts, batches, count, disk_bytes
from mpa_edge.planning.memory import (
    FLOAT_BYTES,
    LIBRARIES_BYTES,
    USABLE,
    answering_bytes,
    largest_that_fits,
    training_bytes,
    tuned,
)
from mpa_edge.planning.model_specs import BYTES_ON_DISK, ImageTokens, ModelSpec, Size, model_spec
from mpa_edge.planning.records import Assumptions, Device, Factor, Price, assumptions, device_file, find_device
from mpa_edge.planning.roofline import Batch, Machine, Tuned, batch_seconds, prompt_flops, training_flops, vision_flops
from mpa_edge.types import Drop

HERE = "here"
HOUR_S = 3600.0
SAMPLE = 32
"""Images of a folder that are opened for their sizes."""
DRAWN_PX = (128, 64)
"""Images of the built-in generator."""


@dataclass(frozen=True)
class Images:
    """The unlabelled images."""

    n: int
    """Usable ones."""
    sizes: tuple[Size, ...]
    """Of all, or of a sample."""
    drawn: int
    """How many the generator would write."""
    source: str
    """Where both numbers are from."""


@dataclass(frozen=True)
class StagePlan:
    """One stage on one machine."""

    seconds: float
    memory_bytes: float
    """Peak, on the GPU if there is one."""
    at_once: int
    """Rows in a batch: the recipe's number, halved until it fits."""
    usd: float = 0.0
    """For the tokens of a hosted teacher."""


@dataclass(frozen=True)
class MachinePlan:
    """A whole run on one machine."""

    machine: Machine
    stages: dict[str, StagePlan]
    start_s: float

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.start_s + sum(stage.seconds for stage in self.stages.values())

    @property
    def memory_bytes(self) -> float:
        """Of the largest stage."""
        return max(stage.memory_bytes for stage in self.stages.values())

    @property
    def fits(self) -> bool:
        """Whether every stage has enough memory, with smaller batches if necessary."""
        return self.memory_bytes <= USABLE * self.machine.device.memory_bytes

    @property
    def usd(self) -> float | None:
        """For the machine and a hosted teacher; None if there is no price or the run does not fit."""
        price, tokens = self.machine.device.price, sum(stage.usd for stage in self.stages.values())
        if not self.fits or (price is None and not tokens):
            return None
        return tokens + (self.seconds / HOUR_S * price.usd_per_hour if price else 0.0)


@dataclass(frozen=True)
class Plan:
    """The estimate for one recipe."""

    recipe: Recipe
    images: Images
    counts: Counts
    teacher: ModelSpec
    student: ModelSpec
    teacher_image: ImageTokens
    """The mean image, as the teacher sees it."""
    student_image: ImageTokens
    tuned: Tuned
    assumed: Assumptions
    disk: dict[str, float]
    """Bytes by kind."""
    machines: tuple[MachinePlan, ...] = ()

    @property
    def disk_bytes(self) -> float:
        """Free space that a run needs, downloads included."""
        return sum(self.disk.values())

    def prepare_s(self, image: ImageTokens) -> float:
        """Seconds of the image processor for one image."""
        return self.assumed["prepare_s"] + self.assumed["prepare_s_per_pixel"] * image.pixels

    def load_s(self, model: ModelSpec) -> float:
        """Seconds to load a model."""
        return self.assumed["load_s"] + BYTES_ON_DISK * model.shapes.parameters / self.assumed["load_bytes_per_s"]


def find_images(recipe: Recipe, images: str | None, assumed: Assumptions) -> Images:
    """Images of a folder, a number of unseen ones, or those that the recipe names. MpaError if it names none."""
    if images is not None and images.isascii() and images.isdigit() and int(images) > 0:
        size = (int(assumed["width_px"]), int(assumed["height_px"]))
        return Images(int(images), (size,), 0, f"a number; width_px x height_px {size[0]} x {size[1]} assumed")
    folder, render = images or recipe.images.path, recipe.images.render
    if folder is not None:
        part = ", of which images.split takes a part" if recipe.images.split else ""
        found = sample_images(scan(Path(folder).expanduser()), recipe.images.max_pixels, f"{folder}{part}")
        if not found.sizes:
            raise MpaError(f"no readable image in {folder}: name another folder, --images DIR")
        return found
    if render is None:
        raise MpaError(f"recipe '{recipe.name}' names no images: add --images DIR, or a number, --images 1000")
    return Images(render.n, (DRAWN_PX,), render.n, "drawn by the recipe's generator")


def sample_images(entries: Sequence[ImageEntry], max_pixels: int, source: str) -> Images:
    """The usable entries of a folder, and the sizes of an evenly spaced sample."""
    usable = [entry for entry in entries if entry.drop is None]
    sample = usable[:: max(1, len(usable) // SAMPLE)][:SAMPLE]
    opened = (open_image(entry.path, max_pixels) for entry in sample)
    sizes = tuple((image.width, image.height) for image in opened if not isinstance(image, Drop))
    return Images(len(usable), sizes, 0, f"{source}, sizes of {len(sizes)} of them")


def this_machine(threads: int | None = None, watch_s: float = 0.5) -> Device:
    """The CPU at hand as a device: `threads` (default: all) of its cores, each peak measured for `watch_s` seconds."""
    import numpy as np
    import psutil

    a, long = np.full((1024, 1024), 0.5, np.float32), np.ones(2**24, np.int32)
    out = np.empty_like(a)

    def best_s(work: Callable[[], object]) -> float:
        """Seconds of the quickest run: other processes only slow it."""
        found: list[float] = []
        end = time.perf_counter() + watch_s
        while len(found) < 3 or time.perf_counter() < end:
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
        return min(found)

    cores = psutil.cpu_count() or 1
    return Device(
        title=f"this machine, {threads or cores} CPU threads, fp32",
        kind="cpu",
        memory_bytes=psutil.virtual_memory().total,
        flops=2 * 1024**3 / best_s(lambda: np.matmul(a, a, out=out)) * (threads or cores) / cores,
        memory_bandwidth=long.nbytes / best_s(long.max),
        source="measured just now",
    )


def as_machine(name: str, device: Device) -> Machine:
    """A device with the efficiency of its kind."""
    return Machine(name, device, device_file().efficiency[device.kind])


def machines(names: Sequence[str], threads: int | None = None, usd_per_hour: float | None = None) -> list[Machine]:
    """Machines by name. `here` is measured; no names: `here` and every GPU of devices.yaml.

    `usd_per_hour` replaces the list prices.
    """
    names = names or [HERE, *(name for name, device in device_file().devices.items() if device.kind == "gpu")]
    found = {name: this_machine(threads) if name == HERE else find_device(name) for name in names}
    if usd_per_hour is not None:
        yours = Price(usd_per_hour=usd_per_hour, offer="--price", source="you", date=datetime.date.today())
        found = {name: device.model_copy(update={"price": yours}) for name, device in found.items()}
    return [as_machine(name, device) for name, device in found.items()]


def make_plan(
    recipe: Recipe, images: str | Images | None, on: Callable[[], Sequence[Machine]], overrides: Sequence[str] = ()
) -> Plan:
    """The plan of a recipe on the machines that `on` returns. UnknownModelError if the sizes of a model are not known.

    `images`: a folder, a number, or what is known of them. `on` is called last: measuring this machine takes a second,
    and a mistake in the recipe should be reported first. `overrides`: assumptions, NAME=VALUE.
    """
    assumed = assumptions(recipe.task, overrides)
    found = images if isinstance(images, Images) else find_images(recipe, images, assumed)
    teacher, student = model_spec(recipe.teacher), model_spec(recipe.student)
    what, counts = tuned(student.shapes, recipe.level), count(recipe, found.n, assumed)
    disk = disk_bytes(recipe, counts, (teacher, student), found.drawn, what, assumed)
    by_teacher, by_student = (model.image_tokens(found.sizes) for model in (teacher, student))
    plan = Plan(recipe, found, counts, teacher, student, by_teacher, by_student, what, assumed, disk)
    return replace(plan, machines=tuple(on_machine(plan, machine) for machine in on()))


def on_machine(plan: Plan, machine: Machine) -> MachinePlan:
    """All stages on one machine."""
    made, annotate, identify, n = plan.counts, plan.recipe.annotate, plan.recipe.identify, plan.counts.questions
    shards, teacher, student = made.images / annotate.shard_size, plan.teacher, plan.student

    def ask(model: ModelSpec, rows: float, size: int, **how: Any) -> StagePlan:
        per_image = rows / max(1, made.images)
        return _ask(plan, machine, model, rows, size, **{"groups": shards, "per_image": per_image} | how)

    asked = [ask(teacher, made.asked, annotate.batch_size, kind="annotation")]
    if annotate.votes:
        # by the same model about the same images: both are there already
        votes = made.annotated * annotate.votes
        asked.append(ask(teacher, votes, annotate.batch_size, new_images=False, is_loaded=True))
    answered = [ask(student, made.verified, identify.batch_size)]
    if not annotate.votes:
        answered.append(ask(teacher, made.annotated, identify.batch_size))
    stages = {
        "annotate": _sum(asked),
        "identify": _sum(answered),
        "level": _level(plan, machine),
        "merge": _merge(plan, machine),
    }
    written: list[StagePlan] = []
    if n:
        size, models = plan.recipe.evaluate.batch_size, [teacher, student, student]
        if made.silver_images:  # the teacher writes the questions, and is not asked again
            models = models[1:]
            rows, votes = made.silver_asked, made.silver_annotated * plan.recipe.evaluate.votes
            groups, per_image = made.silver_images / annotate.shard_size, annotate.samples_per_image
            how: dict[str, Any] = {"groups": groups, "per_image": per_image}
            written = [
                ask(teacher, rows, annotate.batch_size, kind="annotation", **how),
                ask(teacher, votes, annotate.batch_size, new_images=False, is_loaded=True, **how),
            ]
        stages["evaluate"] = _sum([*written, *(ask(model, n, size, groups=n / CHUNK, per_image=1) for model in models)])
    return MachinePlan(machine, stages, plan.assumed["start_s"])


def _sum(parts: Sequence[StagePlan]) -> StagePlan:
    """Parts of one stage, one after the other."""
    return StagePlan(
        sum(one.seconds for one in parts),
        max(one.memory_bytes for one in parts),
        min(one.at_once for one in parts),
        sum(one.usd for one in parts),
    )


def _ask(
    plan: Plan,
    machine: Machine,
    model: ModelSpec,
    rows: float,
    size: int,
    *,
    groups: float,
    per_image: float,
    kind: str = "answer",
    new_images: bool = True,
    is_loaded: bool = False,
) -> StagePlan:
    """`rows` questions in `groups` groups to one model, `per_image` of them about one image."""
    assumed, server = plan.assumed, plan.recipe.teacher_server
    image = plan.teacher_image if model is plan.teacher else plan.student_image
    stage = plan.recipe.annotate if kind == "annotation" else plan.recipe.identify
    prompt = assumed[f"{kind}_prompt_tokens"]
    longest, written = (min(assumed[f"{kind}_{name}"], stage.max_new_tokens) for name in ("longest", "tokens"))
    if model.is_server:
        if server.price_in is not None and server.price_out is not None:
            # paid by the token; its speed is not ours to compute
            usd = rows * ((image.tokens + prompt) * server.price_in + written * server.price_out) / 1e6
            seconds = rows * assumed["request_s"] / server.concurrency
            return StagePlan(seconds, LIBRARIES_BYTES[machine.device.kind], server.concurrency, usd)
        # a server refills finished rows at once and runs whole steps as graphs: calls cost no time
        size, longest = server.concurrency, written
        no_calls = {"layer_s": Factor(value=0.0, where="a server runs whole steps as graphs")}
        machine = replace(machine, efficiency=machine.efficiency.model_copy(update=no_calls))

    def batch(rows: float) -> Batch:
        images = min(float(rows), max(1.0, rows / per_image)) if new_images else 0.0
        return Batch(rows, images, image.tokens, prompt, longest, written)

    def need(size: int) -> float:
        return answering_bytes(model.shapes, image, batch(size), machine)

    size = largest_that_fits(size, need, USABLE * machine.device.memory_bytes)
    n = batches(rows, groups, size)
    answer_s = n * batch_seconds(model.shapes, image, batch(rows / n if n else size), machine)
    prepare_s = n * batch(rows / n).images * plan.prepare_s(image) if n else 0.0
    # on a GPU a second thread prepares images while the model works
    seconds = max(prepare_s, answer_s) if machine.device.kind == "gpu" else prepare_s + answer_s
    return StagePlan(seconds + (0.0 if is_loaded else plan.load_s(model)), need(size), size)


def _level(plan: Plan, machine: Machine) -> StagePlan:
    """Optimiser steps, and the held-out samples every eval_steps."""
    config, made, shapes, image = plan.recipe.level, plan.counts, plan.student.shapes, plan.student_image
    tokens = image.tokens + plan.assumed["answer_prompt_tokens"] + plan.assumed["answer_tokens"]

    def need(size: int) -> float:
        return training_bytes(shapes, image, tokens, size, plan.tuned, config, machine.device.kind)

    at_once = largest_that_fits(config.batch_size, need, USABLE * machine.device.memory_bytes)
    flops = training_flops(shapes, image, tokens, plan.tuned, config.gradient_checkpointing)
    layers = 3 * (shapes.vision.layers + shapes.language.layers) * config.batch_size / at_once
    step_s = machine.step_s(machine.compute_s(config.batch_size * flops, training=True), layers)
    forward_s = machine.compute_s(vision_flops(shapes, image) + prompt_flops(shapes, tokens, logits=tokens))
    evaluated = made.steps // config.eval_steps * made.held_out
    prepared = made.steps * config.batch_size + evaluated
    seconds = made.steps * step_s + evaluated * forward_s + prepared * plan.prepare_s(image)
    return StagePlan(plan.load_s(plan.student) + seconds, need(at_once), at_once)


def _merge(plan: Plan, machine: Machine) -> StagePlan:
    """On the CPU, whatever the device: fp32 weights are read, hashed and written several times."""
    size_bytes = FLOAT_BYTES * plan.student.shapes.parameters
    seconds = plan.assumed["load_s"] + plan.assumed["merge_passes"] * size_bytes / plan.assumed["load_bytes_per_s"]
    memory_bytes = LIBRARIES_BYTES["cpu"] + 2 * size_bytes if machine.device.kind == "cpu" else 0.0
    return StagePlan(seconds, memory_bytes, 1)


def as_document(plan: Plan) -> dict[str, Any]:
    """The plan as a JSON document, with all assumptions and sources."""
    models = {"teacher": (plan.teacher, plan.teacher_image), "student": (plan.student, plan.student_image)}
    return {
        "recipe": plan.recipe.name,
        "images": {"n": plan.images.n, "source": plan.images.source},
        **{
            role: {
                "model": spec.reference,
                "parameters": spec.shapes.parameters,
                "sizes_from": spec.source,
                "image": asdict(image),
            }
            for role, (spec, image) in models.items()
        },
        "trained_parameters": plan.tuned.parameters,
        "counts": asdict(plan.counts),
        "disk_bytes": round(plan.disk_bytes),
        "disk": plan.disk,
        "machines": [
            {
                "device": one.machine.name,
                "fits": one.fits,
                "memory_bytes": round(one.memory_bytes),
                "hours": one.seconds / HOUR_S,
                "usd": one.usd,
                "stages": {name: asdict(stage) for name, stage in one.stages.items()},
                "peaks": one.machine.device.model_dump(mode="json"),
                "efficiency": one.machine.efficiency.model_dump(),
            }
            for one in plan.machines
        ],
        "assumptions": {name: factor.model_dump() for name, factor in plan.assumed.factors.items()},
    }
