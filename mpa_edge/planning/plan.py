"""A recipe, its pictures and machines -> the whole plan. Nothing is loaded, fetched or written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mpa_edge.config.recipe import Recipe
from mpa_edge.errors import MpaError
from mpa_edge.images.folder import open_image, scan
from mpa_edge.planning.calibrate import this_machine
from mpa_edge.planning.counts import Figure, count, count_figures, disk, prompts
from mpa_edge.planning.estimate import HOUR_S, MachinePlan, Work, figures_of, on_machine
from mpa_edge.planning.image_tokens import Size
from mpa_edge.planning.memory import tuned
from mpa_edge.planning.model_specs import KnownModel, known_model
from mpa_edge.planning.records import Assumptions, Price, assumptions, device_file, find_device
from mpa_edge.planning.roofline import Machine
from mpa_edge.types import Drop

HERE = "here"
LOOKED_AT = 32
DRAWN_PX = (128, 64)  # of the built-in generator


@dataclass(frozen=True)
class Pictures:
    """The unlabelled images: how many, and what sizes they have."""

    n: int
    """Those that can be used."""
    sizes: tuple[Size, ...]
    """Of all, or of some that stand for all."""
    drawn: int
    """How many the generator would write."""
    source: str
    """Where both numbers are from."""


@dataclass(frozen=True)
class Plan:
    """What `mpa-edge plan` prints."""

    recipe: Recipe
    pictures: Pictures
    work: Work
    disk: tuple[Figure, ...]
    machines: tuple[MachinePlan, ...]

    @property
    def disk_bytes(self) -> float:
        """Free space that a run needs."""
        return sum(figure.value for figure in self.disk)


def pictures(recipe: Recipe, images: str | None, assumed: Assumptions) -> Pictures:
    """The pictures of a folder, a number of unseen ones, or what the recipe names. MpaError where it names none."""
    if images is not None and images.isascii() and images.isdigit() and int(images) > 0:
        size = (int(assumed["width_px"]), int(assumed["height_px"]))
        return Pictures(int(images), (size,), 0, f"a number; width_px x height_px {size[0]} x {size[1]} assumed")
    folder, render = images or recipe.images.path, recipe.images.render
    if folder is not None:
        found = _of_folder(Path(folder).expanduser(), recipe.images.max_pixels)
        fewer = ", of which images.split takes a part" if recipe.images.split else ""
        return replace(found, source=found.source + fewer)
    if render is None:
        raise MpaError(f"recipe '{recipe.name}' names no images: add --images DIR, or a number, --images 1000")
    return Pictures(render.n, (DRAWN_PX,), render.n, "drawn by the recipe's generator")


def _of_folder(folder: Path, max_pixels: int) -> Pictures:
    """Number of usable pictures, and the sizes of some that lie evenly among them."""
    usable = [entry for entry in scan(folder) if entry.drop is None]
    some = usable[:: max(1, len(usable) // LOOKED_AT)][:LOOKED_AT]
    opened = (open_image(entry.path, max_pixels) for entry in some)
    sizes = tuple((image.width, image.height) for image in opened if not isinstance(image, Drop))
    if not sizes:
        raise MpaError(f"no readable image in {folder}: name another folder, --images DIR")
    return Pictures(len(usable), sizes, 0, f"{folder}, sizes of {len(sizes)} of them")


def machines(
    names: Sequence[str], threads: int | None, assumed_price: float | None
) -> list[tuple[Machine, Price | None]]:
    """Machines by name, `here` is measured; none named: this one and every one on the list."""
    file = device_file()
    chosen = list(names) or [HERE, *(name for name, device in file.devices.items() if device.kind == "gpu")]
    found = []
    for name in dict.fromkeys(chosen):
        device = this_machine(threads) if name == HERE else find_device(name)
        found.append((Machine(name, device, file.efficiency[device.kind]), _price(assumed_price, device.price)))
    return found


def _price(given: float | None, listed: Price | None) -> Price | None:
    if given is None:
        return listed
    import datetime

    return Price(usd_per_hour=given, offer="--price", source="you", date=datetime.date.today())


def make_plan(
    recipe: Recipe,
    images: str | None,
    on: Callable[[], Sequence[tuple[Machine, Price | None]]],
    assumed_values: Sequence[str] = (),
) -> Plan:
    """The plan of a recipe on the machines that `on` gives. MpaError where models or pictures are not to be had.

    `on` is called last: measuring this machine takes a second, and a mistake in the recipe is said before.
    """
    assumed = assumptions(recipe.task, assumed_values)
    found = pictures(recipe, images, assumed)
    teacher, student = known_model(recipe.teacher), known_model(recipe.student)
    sizes = list(found.sizes)
    what = tuned(student.shapes, recipe.level)
    work = Work(
        recipe,
        count(recipe, found.n, assumed),
        prompts(recipe, assumed),
        teacher,
        student,
        teacher.see(sizes),
        student.see(sizes),
        what,
        assumed,
    )
    written = disk(recipe, work.counts, (teacher, student), found.drawn, what, assumed)
    return Plan(recipe, found, work, tuple(written), tuple(on_machine(work, machine, price) for machine, price in on()))


def as_document(plan: Plan, explain: bool) -> dict[str, Any]:
    """The plan as one JSON document."""
    work = plan.work
    document: dict[str, Any] = {
        "recipe": plan.recipe.name,
        "images": {"n": plan.pictures.n, "source": plan.pictures.source},
        "teacher": _model(work.teacher, asdict(work.teacher_sees)),
        "student": _model(work.student, asdict(work.student_sees)) | {"trained_parameters": work.tuned.parameters},
        "counts": asdict(work.counts),
        "disk_bytes": round(plan.disk_bytes),
        "machines": [_machine(machine) for machine in plan.machines],
    }
    if explain:
        document["assumptions"] = {name: factor.model_dump() for name, factor in work.assumed.factors.items()}
        document["figures"] = [asdict(figure) for figure in common_figures(plan)]
        for entry, machine in zip(document["machines"], plan.machines, strict=True):
            entry["figures"] = [asdict(figure) for figure in figures_of(machine)]
    return document


def common_figures(plan: Plan) -> list[Figure]:
    """Figures that hold on every machine."""
    return [*count_figures(plan.recipe, plan.work.counts, plan.work.assumed), *plan.disk]


def _model(model: KnownModel, seen: dict[str, float]) -> dict[str, Any]:
    return {
        "model": model.reference,
        "parameters": model.shapes.parameters,
        "sizes_from": model.source,
        "behind_a_server": model.server,
        "picture": seen,
    }


def _machine(plan: MachinePlan) -> dict[str, Any]:
    device = plan.machine.device
    return {
        "device": plan.machine.name,
        "title": device.title,
        "fits": plan.fits,
        "memory_bytes": round(plan.memory_bytes),
        "hours": plan.seconds / HOUR_S,
        "usd": plan.usd,
        "price": plan.price.model_dump(mode="json") if plan.price else None,
        "stages": {
            stage.stage: {"seconds": stage.seconds, "memory_bytes": round(stage.memory_bytes), "at_once": stage.at_once}
            for stage in plan.stages
        },
        "efficiency": plan.machine.efficiency.model_dump(),
    }
