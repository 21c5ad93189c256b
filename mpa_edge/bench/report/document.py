"""The report as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpa_edge.bench.report.compare import Comparison
from mpa_edge.bench.report.read import BenchData


def report_document(
    benches: Sequence[BenchData], comparisons: Sequence[Comparison] = (), alone: Sequence[str] = ()
) -> dict[str, Any]:
    """`benches` with bench.json, sweep and notes of each; `comparisons`; `regressions`, their number."""
    return {
        "schema_version": 1,
        "benches": [
            {
                "bench": data.report.model_dump(mode="json"),
                "sweep": data.sweep.model_dump(mode="json") if data.sweep else None,
                "notes": list(data.notes),
            }
            for data in benches
        ],
        "comparisons": [
            {
                "before": one.before.title,
                "after": one.after.title,
                "changes": [change.model_dump(mode="json") for change in one.changes],
                "differences": list(one.differences),
            }
            for one in comparisons
        ],
        "without_counterpart": list(alone),
        "regressions": sum(len(one.regressions) for one in comparisons),
    }
