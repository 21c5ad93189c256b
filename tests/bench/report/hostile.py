"""A benchmark whose every text tries to break out of the report."""

from __future__ import annotations

from pathlib import Path

from mpa_edge.bench.report.read import BenchData, read_bench
from mpa_edge.bench.results.records import ANSWERS, BENCH, BenchReport
from tests.bench import made_up

TEXTS = (
    "<script>document.title = 'owned'</script>",
    "</style><img src=http://192.0.2.1/x onerror=alert(1)>",
    "\u202egnp.exe\u202c \u2066x",
    "x" * 200_000,
    "\x00\x07\x1b[31mred\x1b[0m\x7f",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "]]> --> <!-- &lt;b&gt; \" ' ` | \\ **bold** [link](javascript:alert(1))",
    'data:image/png;base64,AAAA" onload="alert(1)',
    "مرحبا بالعالم שלום 👩‍👩‍👧 e\u0301\u0301\u0301\u0301",
    "[bold red]markup[/] [/nonsense]",
    "\n# heading\n\n- list\n| a | b |\n",
)


def write(folder: Path) -> BenchData:
    """Questions, answers, names and readings, each one of TEXTS."""
    made_up.write(folder, n=len(TEXTS) * 2)
    data = read_bench(folder)
    rows = []
    for i, row in enumerate(data.answers):
        text = TEXTS[i % len(TEXTS)]
        values = {"id": f"{i}{text[:40]}", "question": text, "answers": (text, text[::-1]), "base": text}
        rows.append(row.model_copy(update={**values, "aligned": text, "artifact": text, "kind": text}))
    (folder / ANSWERS).write_text("".join(row.model_dump_json() + "\n" for row in rows))
    report = data.report
    used = report.environment.model_copy(
        update={
            "cpu": TEXTS[0],
            "os": TEXTS[1],
            "runtime": TEXTS[6],
            "backend": TEXTS[4],
            "machine": TEXTS[3],
            "cpu_features": TEXTS,
            "transport": TEXTS[9],
            "readings": {text[:300]: {"value": None, "reason": text} for text in TEXTS} | {"list": list(TEXTS)},
        }
    )
    changed: BenchReport = report.model_copy(
        update={
            "run": TEXTS[0],
            "scheme": TEXTS[6],
            "target": TEXTS[1],
            "reasons": TEXTS,
            "not_timed": TEXTS,
            "environment": used,
            "energy": None,
            "energy_reason": TEXTS[2],
            "bundle_sha256": TEXTS[7],
            "memory": report.memory.model_copy(update={"method": TEXTS[5]}),
            "created": TEXTS[10],
            "timings": f"invalid: {TEXTS[0]}",
        }
    )
    (folder / BENCH).write_text(changed.model_dump_json())
    return read_bench(folder)
