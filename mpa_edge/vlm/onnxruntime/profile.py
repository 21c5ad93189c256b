"""Nodes and time of each execution provider in one answer, from ONNX Runtime's own profile of its sessions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpa_edge.runs.paths import remove
from mpa_edge.vlm.onnxruntime.providers import KNOWN, Execution, about, installed
from mpa_edge.vlm.onnxruntime.sessions import Graph
from mpa_edge.vlm.shared.usage import Usage

NAMES = {known.provider: name for name, those in KNOWN.items() for known in those}
"""Execution provider -> accelerator."""
MICROSECOND = 1e-6


def usage_of(graphs: Sequence[Graph], execution: Execution, skipped: Sequence[int]) -> Usage:
    """What computed, since the first `skipped` runs of each graph. Their profiling ends with this call.

    A provider's kernels may return before its device has computed, so their times say little; those of what ran
    elsewhere do, since they ran on the processor. So the chosen accelerator gets what is left of each run's time.
    """
    nodes: Counter[str] = Counter()
    seconds: Counter[str] = Counter({execution.accelerator: 0.0})
    operators: Counter[str] = Counter()
    for graph, first in zip(graphs, skipped, strict=True):
        nodes += assigned(graph.session)
        path = Path(graph.session.end_profiling())
        events = json.loads(path.read_bytes())
        remove(path)
        runs = sorted((one for one in events if one["name"] == "model_run"), key=lambda one: one["ts"])[first:]
        start = runs[0]["ts"] if runs else float("inf")
        others = [
            (NAMES.get(one["args"]["provider"], one["args"]["provider"]), one["args"]["op_name"], one["dur"])
            for one in events
            if one["cat"] == "Node" and one["ts"] >= start and one["args"].get("provider")
        ]
        left = sum(one["dur"] for one in runs) * MICROSECOND
        for name, operator, duration in others:
            if name != execution.accelerator:
                taken = min(duration * MICROSECOND, left)
                left -= taken
                seconds[name] += taken
                operators[f"{operator} of {graph.path.stem} on {name}"] += taken
        seconds[execution.accelerator] += left
    return Usage(
        execution.accelerator,
        about(execution),
        execution.missing,
        dict(nodes) or None,
        dict(seconds),
        tuple(operators.most_common(10)),
        there=installed(),
    )


def assigned(session: Any) -> Counter[str]:
    """Nodes of each accelerator; empty where this onnxruntime does not report them."""
    found: Counter[str] = Counter()
    if hasattr(session, "get_provider_graph_assignment_info"):
        for part in session.get_provider_graph_assignment_info():
            found[NAMES.get(part.ep_name, part.ep_name)] += len(part.get_nodes())
    return found
