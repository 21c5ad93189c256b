"""Ten million pictures with a 7B teacher, on paper: hours, cost, storage, and what is full first.

    python benchmarks/scale_plan.py --json

Seconds of the stages are those of `mpa-edge plan` (mpa_edge/planning), annotate and identify spread over all GPUs. What
is added here: how the work is cut, what leaves a machine, and what the parts that are shared can carry. Each capacity
says where it is from; GPUs were not at hand, so that everything below is as far off as the plan's planning values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from mpa_edge.config.library import load_recipe
from mpa_edge.planning.estimate import HOUR_S, MachinePlan
from mpa_edge.planning.plan import Plan, machines, make_plan
from mpa_edge.planning.records import Factor

IMAGES = 10_000_000
GPUS = (8, 64, 512)
DEVICE = "h100"
IN_PROCESS, SERVED = "smolvlm-500m-chartqa", "charts-served"
# the defaults would train three passes over millions of samples, and look at 325,000 held-out ones every 20 steps
SET = ("level.max_steps=20000", "level.holdout=0.001", "level.eval_steps=500")
DEFAULTS = ("level.max_steps=20000",)
MEASURED = Path(__file__).parents[1] / "docs" / "scale.json"
SHARD_SIZES = (100, 1000)
FILES_A_SHARD = 4  # part and dropped rows, of annotate and of identify

# what is shared, and how much of it there is
ASSUMED = {
    "gpus_a_host": Factor(value=8, where="the usual machine"),
    "cores_a_gpu": Factor(value=16, where="the usual machine: 128 cores and more for 8 GPUs"),
    "picture_bytes": Factor(value=250_000, where="a JPEG of 1024 x 768"),
    "png_bytes": Factor(value=1_200_000, where="the same as PNG, which a server gets unless image_format is jpeg"),
    "nfs_bytes_per_s": Factor(value=1.25e9, where="one file server with 10 Gbit/s"),
    "store_gets_per_s": Factor(value=5500, where="S3, a second and prefix: its guide, 'Optimizing performance'"),
    "store_puts_per_s": Factor(value=3500, where="as store_gets_per_s"),
    "store_usd_per_gb_month": Factor(value=0.023, where="S3 Standard, us-east-1, aws.amazon.com/s3/pricing"),
    "store_usd_per_1000_puts": Factor(value=0.005, where="S3 Standard, us-east-1, same page"),
    "asker_requests_per_s": Factor(value=200, where="one process that asks: a planning value"),
    "server_link_bytes_per_s": Factor(value=3.0e9, where="25 Gbit/s into the machine that asks"),
    "row_bytes": Factor(value=400, where="as mpa_edge/planning/assumptions.yaml"),
    "verdict_bytes": Factor(value=1536, where="one ParityRecord in memory, tracemalloc over 20,000"),
    "host_bytes": Factor(value=256e9, where="memory of a small machine with GPUs"),
    "engine_start_s": Factor(value=30, where="Ray starts its processes, each GPU loads the teacher: a planning value"),
    "level_gpus": Factor(value=8, where="one machine: a student of 0.5B learns no faster across a network"),
    "level_efficiency": Factor(value=0.85, where="of 8 GPUs against one, gradients added up: a planning value"),
}


def value(name: str) -> float:
    """An assumption's number."""
    return ASSUMED[name].value


@dataclass(frozen=True)
class Load:
    """One thing that all GPUs share, during the stage that asks most of it."""

    what: str
    """For people."""
    asked: float
    """In its unit."""
    carries: float
    """In the same unit."""
    unit: str
    answer: str
    """What the design does about it."""

    @property
    def share(self) -> float:
        """1 is full."""
        return self.asked / self.carries


def driver_shard_s() -> Factor:
    """Seconds of the driver's processor for one shard: what more of them cost it, between two runs of scale.py."""
    stored = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    runs = sorted((one for one in stored.get("runs", []) if one["size"]["engine"] == "ray"), key=lambda r: r["images"])
    if len(runs) < 2:
        return Factor(value=0.01, where="not measured yet: a planning value")
    (cpu, few), (more_cpu, many) = (_done(run) for run in (runs[0], runs[-1]))
    return Factor(
        value=(more_cpu - cpu) / (many - few), where=f"measured, {few:,.0f} and {many:,.0f} shards: docs/scale.json"
    )


def _done(run: dict[str, Any]) -> tuple[float, float]:
    """(processor seconds of the second driver, shards that it saw through in both stages)."""
    size = run["size"]
    shards = size["images"] / size["shard_size"]
    return run["second"]["cpu_s"], 2 * shards - run["first"]["parts"]


def planned(recipe: str, images: int = IMAGES, changed: tuple[str, ...] = SET) -> tuple[Plan, MachinePlan]:
    """The plan of `mpa-edge plan RECIPE --images N --device h100`."""
    found = make_plan(load_recipe(recipe, changed), str(images), lambda: machines([DEVICE], None, None))
    return found, found.machines[0]


def stage_s(plan: MachinePlan) -> dict[str, float]:
    """Seconds of each stage on one GPU, models loaded."""
    return {stage.stage: stage.seconds for stage in plan.stages}


def spread(plan: Plan, machine: MachinePlan, gpus: int, shard_size: int) -> dict[str, float]:
    """Wall seconds of each stage on so many GPUs: the last shards end when they end, on average one later."""
    alone, shards = stage_s(machine), plan.pictures.n / shard_size
    found = {}
    for name, seconds in alone.items():
        if name in ("annotate", "identify"):
            found[name] = seconds / gpus + seconds / shards + value("engine_start_s")
        elif name == "level":
            found[name] = seconds / min(gpus, value("level_gpus")) / value("level_efficiency")
        else:
            found[name] = seconds
    return found


def cost_usd(machine: MachinePlan, walls: dict[str, float], gpus: int) -> float:
    """Each stage with the GPUs that it can use: the others are given back before (a run goes on anywhere)."""
    used = {"annotate": gpus, "identify": gpus, "level": min(gpus, value("level_gpus"))}
    price = machine.price.usd_per_hour if machine.price else 0.0
    return sum(seconds / HOUR_S * used.get(name, 1) * price for name, seconds in walls.items())


def loads(plan: Plan, machine: MachinePlan, gpus: int, shard_size: int) -> Iterator[Load]:
    """What is shared, in the stage where pictures go fastest."""
    walls = spread(plan, machine, gpus, shard_size)
    pictures_per_s = max(plan.pictures.n / walls[name] for name in ("annotate", "identify"))
    hosts, shards_per_s = max(1.0, gpus / value("gpus_a_host")), pictures_per_s / shard_size
    assumed, seen = plan.work.assumed, plan.work.student_sees
    prepare_s = assumed["prepare_s"] + assumed["prepare_s_per_pixel"] * seen.pixels
    yield Load(
        "one file server (10 Gbit/s)",
        pictures_per_s * value("picture_bytes"),
        value("nfs_bytes_per_s"),
        "bytes/s",
        "pictures from an object store or a copy on each machine; each is read once a stage",
    )
    yield Load(
        "reads of one prefix of a bucket",
        pictures_per_s,
        value("store_gets_per_s"),
        "GET/s",
        "a folder (a prefix) for each few thousand pictures: folders below --images count as one set",
    )
    yield Load(
        "cores of a machine that prepare pictures",
        pictures_per_s / hosts * prepare_s,
        min(gpus, value("gpus_a_host")) * value("cores_a_gpu"),
        "cores",
        "a stage of its own beside the actors (Ray)",
    )
    yield Load(
        "the driver",
        shards_per_s,
        1 / driver_shard_s().value,
        "shards/s",
        "annotate.shard_size: ten times larger shards are a tenth of the messages",
    )
    yield Load(
        "writes of one prefix of a bucket", shards_per_s * 2, value("store_puts_per_s"), "PUT/s", "as the driver"
    )
    yield Load(
        "memory of level: it chooses among all verdicts",
        plan.work.counts.annotated * value("verdict_bytes"),
        value("host_bytes"),
        "bytes",
        "nothing yet: at ten times as many pictures, choose in passes over the parts",
    )


def storage(plan: Plan, shard_size: int) -> dict[str, float]:
    """What lies in the bucket afterwards, and what that costs."""
    files = FILES_A_SHARD * plan.pictures.n / shard_size
    made = plan.work.counts
    rows_bytes = (made.asked + made.annotated) * value("row_bytes")
    model_bytes = sum(f.value for f in plan.disk if f.name in ("disk.checkpoints", "disk.merged"))
    pictures_bytes = plan.pictures.n * value("picture_bytes")
    month = (rows_bytes + model_bytes + pictures_bytes) / 1e9 * value("store_usd_per_gb_month")
    return {
        "files": files,
        "rows_bytes": rows_bytes,
        "model_bytes": model_bytes,
        "pictures_bytes": pictures_bytes,
        "usd_per_month": month,
        "puts_usd": files / 1000 * value("store_usd_per_1000_puts"),
    }


def servers(gpus: int) -> dict[str, float]:
    """The same teacher behind servers on the same GPUs: one process asks, each question carries its picture."""
    plan, machine = planned(SERVED)
    alone = stage_s(machine)["annotate"]
    requests = plan.work.counts.asked + plan.work.counts.annotated * plan.work.recipe.annotate.votes
    per_s = requests / (alone / gpus)
    return {
        "annotate_s": alone / gpus,
        "requests_per_s": per_s,
        "askers": per_s / value("asker_requests_per_s"),
        "link_share": per_s * value("png_bytes") / value("server_link_bytes_per_s"),
        "link_share_jpeg": per_s * value("picture_bytes") / value("server_link_bytes_per_s"),
    }


def for_gpus(plan: Plan, machine: MachinePlan, gpus: int, shard_size: int) -> dict[str, Any]:
    """One row of the tables."""
    walls = spread(plan, machine, gpus, shard_size)
    found = sorted(loads(plan, machine, gpus, shard_size), key=lambda load: -load.share)
    return {
        "gpus": gpus,
        "shard_size": shard_size,
        "stage_s": walls,
        "hours": sum(walls.values()) / HOUR_S,
        "usd": cost_usd(machine, walls, gpus),
        "shard_s": stage_s(machine)["annotate"] / plan.pictures.n * shard_size,
        "loads": [asdict(load) | {"share": load.share} for load in found],
    }


def figures() -> dict[str, Any]:
    """Everything for docs/scale.md."""
    plan, machine = planned(IN_PROCESS)
    return {
        "command": "python benchmarks/scale_plan.py --json",
        "plan": " ".join(
            [f"mpa-edge plan {IN_PROCESS} --images {IMAGES} --device {DEVICE}", *(f"--set {one}" for one in SET)]
        ),
        "images": IMAGES,
        "counts": {k: v for k, v in asdict(plan.work.counts).items() if k in ("asked", "annotated", "gap", "steps")},
        "one_gpu_s": stage_s(machine),
        "level_with_defaults_s": stage_s(planned(IN_PROCESS, changed=DEFAULTS)[1])["level"],
        "price": machine.price.model_dump(mode="json") if machine.price else None,
        "rows": [for_gpus(plan, machine, gpus, size) for gpus in GPUS for size in SHARD_SIZES],
        "storage": {str(size): storage(plan, size) for size in SHARD_SIZES},
        "servers": {str(gpus): servers(gpus) for gpus in GPUS},
        "assumed": {
            name: factor.model_dump() for name, factor in {**ASSUMED, "driver_shard_s": driver_shard_s()}.items()
        },
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def main(as_json: bool) -> None:
    """Print the figures."""
    found = figures()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for row in found["rows"]:
        first = row["loads"][0]
        click.echo(
            f"{row['gpus']} GPUs, shards of {row['shard_size']}: {row['hours']:,.1f} h, {row['usd']:,.0f} USD; "
            f"fullest: {first['what']}, {first['share']:.0%}"
        )


if __name__ == "__main__":
    main()
