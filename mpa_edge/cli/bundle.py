"""One folder or tar file with everything that a device needs for a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mpa_edge.cli._bench import bench_arguments, open_benches, show_plan
from mpa_edge.cli._options import dry_run_option, is_verbose, json_option, print_json, verbose_option
from mpa_edge.cli._remote import fetched
from mpa_edge.cli._stage import suppress_library_output


@click.command("bundle")
@bench_arguments
@click.option("--out", type=click.Path(), metavar="DIR|FILE.tar", help="Output.  [default: RUN/bench/bundles]")
@dry_run_option
@json_option
@verbose_option
@fetched("run")
def command(out: str | None, dry_run: bool, as_json: bool, **asked: Any) -> None:
    """Pack models, questions, images and the runner for a device, with a hash of each file and of the whole.

    bench does this itself. Use it for a device without a connection: copy the bundle there, follow its README, copy the
    job's folder back, and give it to bench --results.

    \b
    Examples:
      $ mpa-edge bundle runs/mine --target cpu --as onnx-int8 --questions 20
      $ mpa-edge bundle runs/mine --as onnx-int8 --questions 20 --no-base --out device.tar
    """
    if dry_run:
        return show_plan(asked)
    from mpa_edge.bench.host.bundle import pack
    from mpa_edge.bench.host.pipeline import make

    with suppress_library_output(is_verbose()):
        benches = open_benches(asked)
        if out and len(benches) > 1:
            raise click.UsageError("--out takes one bundle: give one --as")
        made = [make(bench, Path(out) if out and not out.endswith(".tar") else None) for bench in benches]
        if out and out.endswith(".tar"):
            pack(made[0], Path(out))
    places = [out or str(bundle.folder) for bundle in made]
    if as_json:
        documents = [
            {"scheme": bench.scheme, "path": place, "sha256": bundle.sha256, "bytes": bundle.bytes}
            for bench, bundle, place in zip(benches, made, places, strict=True)
        ]
        return print_json({"run": asked["run"], "target": benches[0].target.name, "bundles": documents})
    for bundle, place in zip(made, places, strict=True):
        files = len(bundle.manifest.files)
        click.echo(f"{place}  {files} files, {bundle.bytes / 1e6:,.1f} MB, sha256 {bundle.sha256}")
    return None
