"""Which settings to try on a device, and what their benchmarks say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from mpa_edge.bench.results.budgets import within
from mpa_edge.bench.results.pareto import marked, recommend
from mpa_edge.bench.results.records import BenchReport, Sweep, SweepPoint
from mpa_edge.config.target import ImageBudget, Target
from mpa_edge.errors import MpaError

Setting = dict[str, str | int]
AXES = ("threads", "image_budget", "scheme")
GRIDS = (1, 4, 9, 16, 25, 36)


def axes_of(text: str) -> dict[str, tuple[str, ...]]:
    """What `--sweep` says: axis -> values, none where the target is to choose.

    >>> axes_of("threads=1:2,scheme")
    {'threads': ('1', '2'), 'scheme': ()}
    """
    found: dict[str, tuple[str, ...]] = {}
    for part in text.split(","):
        name, has_values, values = part.strip().partition("=")
        if name not in AXES:
            raise MpaError(f"--sweep: no axis '{name}': choose among {', '.join(AXES)}")
        found[name] = tuple(dict.fromkeys(value for value in values.split(":") if value)) if has_values else ()
        if has_values and not found[name]:
            raise MpaError(f"--sweep: {name} has no values: write {name}=A:B, or {name} alone")
    return found


def settings(axes: Mapping[str, Sequence[str]], target: Target, cores: int) -> list[Setting]:
    """Every combination; `cores` are those of the device."""
    values: dict[str, list[str | int]] = {}
    for name in AXES:
        if name not in axes:
            continue
        given = list(axes[name])
        if name == "scheme":
            values[name] = [*given] or [choice.name for choice in target.schemes]
        else:
            usual = thread_counts(cores) if name == "threads" else tile_counts(target.image.max_tiles)
            values[name] = [whole(name, value) for value in given] or [*usual]
    return [dict(zip(values, each, strict=True)) for each in product(*values.values())]


def whole(name: str, text: str) -> int:
    """A count from the command line."""
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise MpaError(f"--sweep: {name}={text} is no count: write whole numbers from 1 to 256")
    return int(text)


def thread_counts(cores: int) -> list[int]:
    """Powers of two up to the number of cores, and that number.

    >>> thread_counts(6)
    [1, 2, 4, 6]
    """
    return sorted({min(2**i, cores) for i in range(cores.bit_length() + 1)})


def tile_counts(most: int) -> list[int]:
    """Square grids of tiles up to what the target allows, and that.

    >>> tile_counts(12)
    [1, 4, 9, 12]
    """
    return [n for n in GRIDS if n < most] + [most]


def budget_for(target: Target, tiles: int) -> ImageBudget:
    """An image budget of so many tiles; models that count pixels get as many as are in proportion."""
    pixels = max(1024, round(target.image.max_pixels * tiles / target.image.max_tiles))
    return ImageBudget(max_tiles=tiles, max_pixels=pixels)


def slug(setting: Setting) -> str:
    """Name of a setting's folder.

    >>> slug({"threads": 2, "scheme": "gguf-q8_0"})
    'threads-2_scheme-gguf-q8_0'
    """
    return "_".join(f"{name}-{value}" for name, value in setting.items())


def point_of(setting: Setting, report: BenchReport) -> SweepPoint:
    """What one benchmark says of its setting; timings that do not count are null."""
    counts = report.timings == "valid"
    return SweepPoint(
        settings=setting,
        accuracy=report.accuracy.artifact.value,
        ci95=report.accuracy.artifact.ci95,
        ttft_s=report.latency["ttft_s"].p50 if counts else None,
        tokens_per_s=report.latency["tokens_per_s"].p50 if counts else None,
        peak_bytes=report.memory.peak_bytes if counts else None,
        within_budgets=within(report.budgets),
        on_front=False,
    )


def sweep_of(target: str, points: Sequence[SweepPoint]) -> Sweep:
    """The front and the recommendation."""
    index, reason = recommend(points)
    return Sweep(target=target, points=marked(points), recommended=index, reason=reason)
