"""One component of a checkpoint as an fp32 ONNX graph."""

from __future__ import annotations

import contextlib
import gc
import inspect
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.config.scheme import Component
from mpa_edge.errors import missing_package
from mpa_edge.runs.files import make_folder
from mpa_edge.runs.paths import move, remove

if TYPE_CHECKING:
    from mpa_edge.exporters.graphs.modules import Graph

OPSET = 20


def export_component(checkpoint: Path, component: Component, out: Path) -> None:
    """Write the fp32 graph of a checkpoint's "vision", "embed" or "decoder" to `out`, large weights to `out`_data.

    Call it in a process of its own (`run_isolated`), so that all of its memory is freed. The file gets its name when
    it is complete. MpaError where the checkpoint cannot be loaded, or its family has no graph.
    """
    try:
        import onnx  # noqa: F401
        import onnx_ir
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_package(str(error.name), "export") from error
    from mpa_edge.exporters.graphs import build
    from mpa_edge.exporters.onnx import files

    model = load_part(checkpoint, component)
    graph = build(model, component)
    del model
    gc.collect()
    program = program_of(graph)
    n_bytes = sum(tensor.const_value.nbytes for tensor in program.model.graph.initializers.values())
    folder, data = out.parent / f".{out.name}.tmp{os.getpid()}", f"{out.name}_data"
    make_folder(folder)
    try:
        onnx_ir.save(program.model, folder / out.name, external_data=data)
        if n_bytes > files.EMBEDDED_BYTES:
            move(folder / data, out.parent / data)  # before the graph that names it
            move(folder / out.name, out)
        else:
            files.embed_weights(folder / out.name, folder / "whole")
            move(folder / "whole", out)
    finally:
        remove(folder)


def load_part(checkpoint: Path, component: Component) -> Any:
    """A checkpoint's model in fp32 with the layers of one component only: other layers are not read from disk.

    Its config is changed so that the other side has no layers; transformers then skips their tensors. A tensor of this
    side that is missing is an MpaError as always.
    """
    from transformers import AutoConfig

    from mpa_edge.vlm.transformers.checkpoint import load_model

    config = AutoConfig.from_pretrained(str(checkpoint), trust_remote_code=False)
    if getattr(config, "audio_config", None):
        config.audio_config = None  # nothing is said to an export
    layered = getattr(config.text_config, "hidden_size_per_layer_input", None)
    if layered and component == "vision":
        config.text_config.hidden_size_per_layer_input = 0
    # a table of embeddings for each layer is as wide as there are layers
    if component == "vision" or (component == "embed" and not layered):
        config.text_config.num_hidden_layers = 0
        if getattr(config.text_config, "layer_types", None):
            config.text_config.layer_types = []
    if component != "vision":
        layers = "depth" if hasattr(config.vision_config, "depth") else "num_hidden_layers"
        setattr(config.vision_config, layers, 0)
    return load_model(str(checkpoint), "cpu", config)


def program_of(graph: Graph) -> Any:
    """The graph as an ONNX program; of equal layers, only three are traced."""
    from mpa_edge.exporters.onnx.repeat import NotAlikeError, repeat, shortened

    program = None
    with shortened(graph) as short:
        if short:
            program = _trace(short.graph)
            try:
                repeat(program.model, short)
            except NotAlikeError:
                program = None
    program = program or _trace(graph)
    for value, axes in zip(program.model.graph.inputs, graph.axes, strict=True):
        for axis, name in axes.items():  # the tracer made up its own names
            value.shape[axis] = name
    for node in program.model.graph.all_nodes():  # stack traces with the paths of this machine, a kilobyte each
        node.metadata_props.clear()
    return program


def _trace(graph: Graph) -> Any:
    """The graph as an ONNX program."""
    import torch

    names = sorted({name for axes in graph.axes for name in axes.values()})
    sizes = {name: torch.export.Dim(name) for name in names if name != "total_sequence_length"}
    # the sum of two other axes: the tracer finds that out by itself
    sizes["total_sequence_length"] = torch.export.Dim.DYNAMIC
    shapes: list[Any] = [{axis: sizes[name] for axis, name in axes.items()} for axes in graph.axes]
    # torch wants the shapes in the form of the module's signature: those of `*past` are a tuple of their own
    parameters = inspect.signature(graph.module.forward).parameters.values()
    n_named = sum(parameter.kind is not inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    if len(shapes) > n_named:
        shapes = [*shapes[:n_named], tuple(shapes[n_named:])]
    with quiet(), torch.no_grad():
        return torch.onnx.export(
            graph.module.eval(),
            graph.sample,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=tuple(shapes),
            dynamo=True,
            optimize=True,
            opset_version=OPSET,
            verbose=False,
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters and quantizers, which report every node; importing some of them reconfigures logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:], root.level = handlers, level
