"""One file a family: how its vision encoder becomes a graph. The language side is the same for all (`text`).

The folder is the registry: `graphs/NAME.py` belongs to `families/NAME.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpa_edge.config.scheme import Component
from mpa_edge.errors import MpaError
from mpa_edge.families import family_of

if TYPE_CHECKING:
    from torch import Tensor, nn

SHARED = ("modules", "text")


@dataclass(frozen=True)
class Graph:
    """What `torch.onnx.export` needs to know of one component."""

    module: nn.Module
    """Takes `sample`, gives one tensor for each of `outputs`; holds only the weights that it uses."""
    sample: tuple[Tensor, ...]
    """Inputs to trace with. Every axis that changes in use is 2 or more here: the tracer takes a 1 for a constant."""
    inputs: tuple[str, ...]
    """Names of the inputs."""
    outputs: tuple[str, ...]
    """Names of the outputs."""
    axes: tuple[dict[int, str], ...]
    """For each input: axis that changes -> its name."""


def build(model: Any, component: Component) -> Graph:
    """One component of a loaded model, ready to trace. MpaError where its family has no graph."""
    from mpa_edge.exporters.graphs import text

    if component == "embed":
        return text.embed(model)
    if component == "decoder":
        return text.decoder(model)
    family = family_of(model.config.model_type).name
    if family not in known():
        raise MpaError(f"family '{family}' has no ONNX graph: export it as GGUF, or use one of {', '.join(known())}")
    found: Graph = importlib.import_module(f"{__name__}.{family}").vision(model)
    return found


def known() -> list[str]:
    """Families that have a graph."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED)
