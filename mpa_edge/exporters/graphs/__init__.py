"""Vision encoders as traceable graphs, one file a family; the language side (`text`) is the same for all.

The folder is the registry: `graphs/NAME.py` belongs to `families/NAME.py`. Its `language`, where it has one, changes
decoder layers that are the family's own, and its `embed` gives the decoder more than embeddings of tokens.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from mpa_edge.config.scheme import Component
from mpa_edge.errors import MpaError
from mpa_edge.families import family_of

if TYPE_CHECKING:
    from mpa_edge.exporters.graphs.modules import Graph

SHARED = ("modules", "text")


def build(model: Any, component: Component) -> Graph:
    """One component of a loaded model, ready to trace. MpaError where its family has no graph."""
    from mpa_edge.exporters.graphs import text

    family = family_of(model.config.model_type).name
    if family not in known():
        raise MpaError(f"family '{family}' has no ONNX graph: export it as GGUF, or use one of {', '.join(known())}")
    own = importlib.import_module(f"{__name__}.{family}")
    if component == "embed":
        return text.embed(model, getattr(own, "embed", None))
    found: Graph = text.decoder(model, getattr(own, "language", None)) if component == "decoder" else own.vision(model)
    return found


def known() -> list[str]:
    """Families that have a graph."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED)
