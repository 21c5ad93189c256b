"""One component of a checkpoint as an fp32 ONNX graph."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.config.scheme import Component
from mpa_edge.errors import missing_package
from mpa_edge.exporters.onnx.embedded import embed_weights

if TYPE_CHECKING:
    from mpa_edge.exporters.graphs import Graph

OPSET = 20
EMBEDDED_BYTES = 1_900_000_000
"""Weights above this go into a file of their own: a protobuf ends at 2 GB."""


def export_component(checkpoint: Path, component: Component, out: Path) -> None:
    """Write the fp32 graph of a checkpoint's "vision", "embed" or "decoder" to `out`, large weights to `out`_data.

    Call it in a process of its own (`apart`), so that its memory is given back whole. Nothing lies under the
    final name before it is complete. MpaError where the checkpoint cannot be loaded, or its family has no graph.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_package(str(error.name), "export") from error
    from mpa_edge.exporters.graphs import build

    model = load_part(checkpoint, component)
    graph = build(model, component)
    del model
    gc.collect()
    _write(_traced(graph), out)


def load_part(checkpoint: Path, component: Component) -> Any:
    """A checkpoint's model in fp32 with the layers of one component alone: no other layer is read from disk.

    Its config says that the other side has no layers; transformers then skips their tensors, and a tensor of this side
    that is not there is an MpaError as always.
    """
    from transformers import AutoConfig

    from mpa_edge.vlm.transformers.checkpoint import load_model

    config = AutoConfig.from_pretrained(str(checkpoint), trust_remote_code=False)
    if component != "decoder":
        config.text_config.num_hidden_layers = 0
        if getattr(config.text_config, "layer_types", None):
            config.text_config.layer_types = []
    if component != "vision":
        layers = "depth" if hasattr(config.vision_config, "depth") else "num_hidden_layers"
        setattr(config.vision_config, layers, 0)
    return load_model(str(checkpoint), "cpu", config)


def _traced(graph: Graph) -> Any:
    """The graph as an ONNX program."""
    import torch

    names = sorted({name for axes in graph.axes for name in axes.values()})
    sizes = {name: torch.export.Dim(name) for name in names if name != "total_sequence_length"}
    # the sum of two other axes: the tracer finds that out by itself
    sizes["total_sequence_length"] = torch.export.Dim.DYNAMIC
    shapes = [{axis: sizes[name] for axis, name in axes.items()} for axes in graph.axes]
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph.module.eval(),
            graph.sample,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=_nested(graph, shapes),
            dynamo=True,
            optimize=True,
            opset_version=OPSET,
            verbose=False,
        )
    _name_axes(program, graph)
    for node in program.model.graph.all_nodes():  # stack traces with the paths of this machine, a kilobyte each
        node.metadata_props.clear()
    return program


def _name_axes(program: Any, graph: Graph) -> None:
    """Give back the names of axes for which the tracer made up its own."""
    for value, axes in zip(program.model.graph.inputs, graph.axes, strict=True):
        for axis, name in axes.items():
            value.shape[axis] = name


def _forget_origin(model: Any) -> None:
    """Drop the tracer's notes: they hold stack traces with this machine's paths, and more bytes than the graph."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def _nested(graph: Graph, shapes: list[dict[int, Any]]) -> tuple[Any, ...]:
    """Shapes in the form of the module's signature: those of `*past` are a tuple of their own."""
    import inspect

    parameters = inspect.signature(graph.module.forward).parameters.values()
    n_named = sum(parameter.kind is not inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    rest = tuple(shapes[n_named:])
    return (*shapes[:n_named], rest) if rest else tuple(shapes)


def _write(program: Any, out: Path) -> None:
    """Save in a temporary folder beside `out`, then move: the weights first, the graph that names them last."""
    import onnx_ir

    n_bytes = sum(tensor.const_value.nbytes for tensor in program.model.graph.initializers.values())
    folder, data = out.parent / f".{out.name}.tmp{os.getpid()}", f"{out.name}_data"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        onnx_ir.save(program.model, folder / out.name, external_data=data)
        if n_bytes > EMBEDDED_BYTES:
            os.replace(folder / data, out.parent / data)
            os.replace(folder / out.name, out)
        else:
            embed_weights(folder / out.name, folder / "whole")
            os.replace(folder / "whole", out)
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks about itself stay out of the user's screen."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
