"""Export ONNX or GGUF files for a device, verified against their checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from mpa_edge.cli._options import dry_run_option, fresh_option, is_verbose, json_option, print_json, verbose_option
from mpa_edge.cli._remote import fetched
from mpa_edge.cli._stage import suppress_library_output
from mpa_edge.exporters.publish.clients import FILES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mpa_edge.exporters.pipeline import Order
    from mpa_edge.exporters.publish.manifest import ExportManifest

DEFAULT_TARGET = "cpu"
ADAPTER, NOT_FOR_IT = "gguf-lora", "--client, --accuracy, --choose and --push-to-hub"
VERDICTS = {"holds": "is kept", "lost": "is lost", "inconclusive": "may be kept or lost"}


@click.command("export")
@click.argument("source", metavar="RUN|CHECKPOINT|ADAPTER")
@click.option("--base", metavar="MODEL", help="Model that an ADAPTER was made for.  [default: the one that it names]")
@click.option("--target", metavar="TARGET", help="Device or class of devices.  [default: cpu, where no --as is given]")
@click.option("--as", "schemes", multiple=True, metavar="SCHEME", help="Quantization scheme; may be given repeatedly.")
@click.option(
    "--client",
    "clients",
    multiple=True,
    type=click.Choice(tuple(FILES)),
    help="Write a program for it beside the files; may be given repeatedly.",
)
@click.option("--accuracy", type=click.IntRange(min=1), metavar="N", help="Ask base, aligned and export N questions.")
@click.option("--choose", is_flag=True, help="Take the smallest scheme that keeps the accuracy within --margin.")
@click.option(
    "--margin",
    type=click.FloatRange(min=0, min_open=True, max=100),
    default=1.0,
    show_default=True,
    metavar="POINTS",
    help="Accuracy that --choose may lose, in percentage points.",
)
@click.option("--out", type=click.Path(), metavar="DIR", help="Where exports go.  [default: RUN/exports]")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: every core]")
@click.option("--push-to-hub", "repo", metavar="REPO", help="Upload to the hub; the token is read from HF_TOKEN.")
@dry_run_option
@fresh_option
@json_option
@verbose_option
@fetched("source")
def command(
    source: str,
    base: str | None,
    target: str | None,
    schemes: tuple[str, ...],
    clients: tuple[str, ...],
    accuracy: int | None,
    choose: bool,
    margin: float,
    out: str | None,
    threads: int | None,
    repo: str | None,
    dry_run: bool,
    fresh: bool,
    as_json: bool,
) -> None:
    """Export a model as quantized ONNX or GGUF files, verified against the checkpoint.

    RUN is a folder that align made, CHECKPOINT a folder or a hub id. An ADAPTER is merged into its base; --as gguf-lora
    writes it alone, for llama.cpp beside the base. Without --as, the target's schemes are tried until one is the same
    model, with --choose the smallest first, until one also keeps the accuracy. Exit code 3: no export is.

    \b
    Examples:
      $ mpa-edge export runs/mine --target jetson --dry-run
      $ mpa-edge export runs/mine --as onnx-int8 --as gguf-q8_0 --accuracy 100
      $ mpa-edge export runs/mine --target phone --choose --client python
      $ mpa-edge export my-adapter --base nursery:student --target jetson
      $ mpa-edge export my-adapter --base nursery:student --as gguf-lora
      $ mpa-edge export nursery:student --as onnx-fp16 --out exports/student
    """
    from mpa_edge.config.library import load_target
    from mpa_edge.exporters.pipeline import Order, choose_schemes, report_of, run_export, taken_by
    from mpa_edge.exporters.source import open_source
    from mpa_edge.exporters.verify.accuracy import measure, recipe_of

    if ADAPTER in schemes:
        more = bool(schemes[1:] or clients or accuracy or choose or repo)
        return export_adapter(source, out, base, target, threads, dry_run, fresh, as_json, more)
    if choose and schemes:
        raise click.UsageError("--choose takes the schemes of a target: leave out --as")
    with suppress_library_output(is_verbose()):
        opened = open_source(source, out, base, merge=not dry_run)
    chosen = load_target(target or DEFAULT_TARGET) if target or not schemes else None
    order = Order(opened, choose_schemes(opened, schemes, chosen), chosen, threads, fresh, first=not schemes)
    order = taken_by(order, clients)
    if choose:
        order = replace(smallest_first(order), margin=margin / 100, questions=accuracy)
    if dry_run:
        return show_plan(order, as_json)
    with suppress_library_output(is_verbose()):
        if accuracy:
            recipe_of(order.source)
        folders = run_export(order)
        if accuracy and not choose:
            measure(order.source, folders, accuracy, order.threads)
        links = upload(folders, repo) if repo else []
    if as_json:
        return print_json({"run": str(order.source.run or source), "exports": [report_of(path) for path in folders]})
    return show_result(order, folders, links)


def smallest_first(order: Order) -> Order:
    """The schemes in order of size. MpaError where there are no questions to choose by."""
    from mpa_edge.exporters.sizes import forecast_bytes
    from mpa_edge.exporters.verify.accuracy import recipe_of

    recipe_of(order.source)
    by_size = sorted(order.schemes, key=lambda scheme: sum(forecast_bytes(order.source, scheme).values()))
    return replace(order, schemes=tuple(by_size))


def export_adapter(
    source: str,
    out: str | None,
    base: str | None,
    target: str | None,
    threads: int | None,
    dry_run: bool,
    fresh: bool,
    as_json: bool,
    more: bool,
) -> None:
    """Write the adapter alone, for llama.cpp on a device that has its base; `more`: other things are asked for."""
    if more:
        raise click.UsageError(f"--as {ADAPTER} makes an adapter and no model: give it alone, without {NOT_FOR_IT}")
    from mpa_edge.config.library import load_target
    from mpa_edge.exporters import lora
    from mpa_edge.exporters.pipeline import Order
    from mpa_edge.exporters.source import open_source

    with suppress_library_output(is_verbose()):
        opened = open_source(source, out, base, merge=False)
        opened.check()
        _, found = lora.adapter_of(opened)  # refused before anything is merged
        size_bytes = sum(tensor.numel() for tensor in found.lora.values()) * 2
        if not dry_run:
            order = Order(open_source(source, out, base), (), load_target(target) if target else None, threads, fresh)
            folder = lora.export_adapter(order)
    if dry_run:
        if as_json:
            return print_json({"source": str(opened.adapter), "predicted_bytes": {ADAPTER: {"adapter": size_bytes}}})
        return click.echo(f"{ADAPTER}: about {size_bytes / 1e6:,.2f} MB, in {opened.exports / ADAPTER}")
    report = lora.report_of(folder)
    if as_json:
        return print_json({"run": str(opened.run or source), "exports": [report]})
    click.echo(f"{ADAPTER}: {report['files']['adapter']['bytes'] / 1e6:,.2f} MB for {report['base']}")
    return click.echo(f"{ADAPTER}: verified with its base, in {folder}")


def upload(folders: list[Path], repo: str) -> list[str]:
    """Each export into a repository of its own, because their files have the same names; returns the addresses."""
    from mpa_edge.exporters.publish.hub import push

    names = [repo] if len(folders) == 1 else [f"{repo}-{folder.name}" for folder in folders]
    return [push(folder, name) for folder, name in zip(folders, names, strict=True)]


def show_plan(order: Order, as_json: bool) -> None:
    """What would be made, and about how large it would be."""
    from mpa_edge.exporters.sizes import disk_need_bytes, forecast_bytes, size_table

    sizes = {scheme.name: forecast_bytes(order.source, scheme) for scheme in order.schemes}
    disk_bytes = disk_need_bytes(order.source, order.schemes[:1] if order.first else order.schemes)
    target = order.target.name if order.target else None
    if as_json:
        plan = {
            "source": str(order.source.checkpoint),
            "exports": str(order.source.exports),
            "disk_bytes": disk_bytes,
            "target": target,
            "predicted_bytes": sizes,
        }
        return print_json(plan)
    click.echo(f"source    {order.source.checkpoint} ({order.source.family.title})")
    click.echo(f"exports   {order.source.exports}")
    click.echo(f"target    {target or 'none'}")
    if order.first:
        click.echo(f"schemes   the first of {', '.join(sizes)} that passes")
    click.echo(size_table(order.source, sizes, title="size, about, MB"))
    click.echo(f"disk      about {disk_bytes / 1e6:,.0f} MB while it runs")
    return None


def show_result(order: Order, folders: list[Path], links: list[str]) -> None:
    """Sizes, notes, accuracy, and where everything is."""
    from mpa_edge.exporters.publish.manifest import component_bytes, finished
    from mpa_edge.exporters.sizes import size_table

    manifests = {folder: finished(folder) for folder in folders}
    sizes = {
        folder.name: {component: component_bytes(manifest, component) for component in manifest.files}
        for folder, manifest in manifests.items()
    }
    click.echo(size_table(order.source, sizes))
    for folder, manifest in manifests.items():
        for refusal in manifest.refused:
            click.echo(f"{refusal.scheme}: refused, {refusal.reason}")
        for line in result_lines(manifest):
            click.echo(f"{folder.name}: {line}")
        click.echo(f"{folder.name}: verified, in {folder}")
    for link in links:
        click.echo(link)


def result_lines(manifest: ExportManifest) -> Iterator[str]:
    """What a user should know of one export."""
    from mpa_edge.questions import measure_of

    yield from manifest.notes
    parity, figures = manifest.parity, manifest.accuracy
    yield (
        f"cosine of image embeddings {parity['vision_cosine_min']:.4f}, "
        f"KL {parity['kl']:.2g} from the checkpoint, "
        f"{parity['greedy_prefix']:.0%} of greedy tokens the same"
    )
    if figures:
        kept = "" if figures.retained_gain is None else f", {figures.retained_gain:.0%} of the gain kept"
        low, high = figures.ci95
        what = "" if figures.truth == "labels" else f"{measure_of(figures.truth)}: "
        yield (
            f"{what}base {figures.base:.1%}, aligned {figures.aligned:.1%}, exported {figures.artifact:.1%} "
            f"({low:.1%} to {high:.1%}) on {figures.n} questions{kept}"
        )
        if figures.review:
            low, high = figures.review.gain_ci95
            yield (
                f"true gain before export {100 * figures.review.gain:+.1f} points (95 % interval {100 * low:+.1f} to "
                f"{100 * high:+.1f}), {figures.review.method}, {figures.review.n_reviewed} reviewed questions"
            )
        yield f"the gain {VERDICTS[figures.verdict]}: {'; '.join(figures.reasons)}"
