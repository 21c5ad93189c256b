"""What computed the answers, by a job's lines, and whether the timings are those of what was asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mpa_edge.bench.device.protocol import JobOrder, Line
from mpa_edge.bench.results.records import AcceleratorResult

LEAST_SHARE = 0.9
"""Where less of the time, or of the layers, is on the accelerator, the timings are not those of the accelerator."""
NAMED = 3


def accelerator_of(order: JobOrder, lines: Iterable[Line], variant: str = "artifact") -> AcceleratorResult | None:
    """What computed a variant; None where the job has no line about it."""
    found = next((line.values for line in lines if line.kind == "used" and line.variant == variant), None)
    if found is None:
        return None
    seconds = found.get("seconds")
    total_s = sum(seconds.values()) if seconds else 0.0
    return AcceleratorResult(
        asked=order.accelerators,
        there=tuple(found.get("there", ())),
        used=found["accelerator"],
        device=found["device"],
        missing=tuple(found["missing"]),
        node_share=shares(found.get("nodes")),
        time_share=shares(seconds),
        elsewhere=tuple(f"{name} {taken_s / total_s:.0%}" for name, taken_s in found["elsewhere"] if total_s),
        software=found["software"],
        build_s=found.get("build_s"),
        gpu_memory_bytes=found.get("gpu_bytes"),
    )


def shares(counts: Mapping[str, float] | None) -> dict[str, float] | None:
    """Counts as shares of their sum; None where there is nothing to share.

    >>> shares({"cuda": 3, "cpu": 1}), shares({"cpu": 0})
    ({'cuda': 0.75, 'cpu': 0.25}, None)
    """
    total = sum(counts.values()) if counts else 0
    return {name: round(count / total, 4) for name, count in counts.items()} if counts and total else None


def not_the_accelerator(result: AcceleratorResult | None) -> list[str]:
    """Why the timings are not those of the accelerator that was used; empty where they are."""
    if result is None:
        return []
    found = []
    if result.software:
        found.append(f"software renderer: {result.device} computes on the processor")
    if result.used not in result.asked:  # a hybrid whose halves both lack it
        found.append(f"fell back to {result.used}: the device has no {' and no '.join(result.asked)}")
    share = result.time_share or result.node_share
    if share and share.get(result.used, 0.0) < LEAST_SHARE:
        others = sorted(set(share) - {result.used}, key=lambda name: -share[name])
        unit = "time" if result.time_share else "layers"
        which = f": {', '.join(result.elsewhere[:NAMED])}" if result.elsewhere else ""
        found.append(
            f"fell back to {' and '.join(others)}: "
            f"{share.get(result.used, 0.0):.0%} of the {unit} on {result.used}{which}"
        )
    return found


def not_there(result: AcceleratorResult | None) -> list[str]:
    """Warnings about preferred accelerators that the device does not have."""
    return [f"not on the device, {result.used} computed instead: {one}" for one in result.missing] if result else []
