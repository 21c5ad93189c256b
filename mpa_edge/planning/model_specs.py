"""A model reference -> its sizes and image budget, from the files of a folder or from models.yaml.

Layer sizes follow the modules of transformers 5.23 for each `model_type`; `tests/planning` compares the parameter
counts with those modules. Norms, biases and position embeddings (below 1 %) are not counted.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mpa_edge.errors import MpaError
from mpa_edge.planning import gemma4
from mpa_edge.planning.records import known_models
from mpa_edge.vlm import resolve
from mpa_edge.vlm.openai.reference import is_server, parse
from mpa_edge.vlm.pixels import gemma4 as gemma_pixels
from mpa_edge.vlm.pixels import idefics3, internvl, lfm2_vl, qwen2_vl
from mpa_edge.vlm.transformers.files import read_object

Config = Mapping[str, Any]
Size = tuple[int, int]
"""Width and height, pixels."""
BYTES_ON_DISK = 2
"""Of a parameter in a published checkpoint: fp16 or bf16."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
# what transformers 5.23 takes where a published config.json has no value
IDEFICS3 = {"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12}
INTERNVL = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
QWEN3 = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16}
VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "idefics3": IDEFICS3,
    "smolvlm": IDEFICS3,
    "llava": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    "internvl": INTERNVL,
    "internvl_chat": INTERNVL,
    "qwen2_vl": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "patch_size": 14},
    "qwen2_5_vl": {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "patch_size": 14},
    "qwen3_vl": QWEN3,
    "qwen3_5": QWEN3,
    "lfm2_vl": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 16},
    "gemma4": gemma4.VISION,
}
DEEPSTACK = (8, 16, 24)
LFM2_IMAGE: dict[str, Any] = {
    "encoder_patch_size": 16,
    "downsample_factor": 2,
    "do_image_splitting": True,
    "min_tiles": 2,
    "max_tiles": 10,
    "tile_size": 512,
    "min_image_tokens": 64,
    "max_image_tokens": 256,
    "max_pixels_tolerance": 2.0,
}
FAULTS = (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError)


class UnknownModelError(MpaError):
    """The sizes of a model are not known without asking a hub."""


@dataclass(frozen=True)
class Stack:
    """Equal transformer layers."""

    layers: int
    hidden: int
    """Width of the residual stream."""
    ffn: int
    """Inner width of the MLP."""
    query: int
    """Heads x head size."""
    key_value: int
    """Key-value heads x head size."""
    gated: bool
    """Whether the MLP has three matrices (gate, up, down) or two."""

    @property
    def matrices(self) -> int:
        """Parameters that each token is multiplied with."""
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.key_value
        return self.layers * (attention + (3 if self.gated else 2) * self.hidden * self.ffn)


@dataclass(frozen=True)
class Shapes:
    """Vision encoder, connector and language model."""

    vision: Stack
    patch_inputs: int
    """Numbers in one patch: channels x frames x area."""
    connector: int
    """Parameters that each image token is multiplied with."""
    language: Stack
    vocabulary: int
    tied: bool
    """Whether the output layer shares the input embeddings."""
    looked_up: int = 0
    """Parameters of other tables, and of parts that are never used."""

    @property
    def head(self) -> int:
        """Parameters of the output layer."""
        return self.vocabulary * self.language.hidden

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        vision = self.vision.matrices + self.patch_inputs * self.vision.hidden + self.connector
        return vision + self.language.matrices + self.head * (1 if self.tied else 2) + self.looked_up

    @property
    def cache_numbers(self) -> int:
        """Keys and values of one token."""
        return 2 * self.language.layers * self.language.key_value


@dataclass(frozen=True)
class ImageTokens:
    """One image as its model sees it, or the mean of many."""

    tiles: float
    """Pieces that are encoded one by one."""
    patches: float
    """Of all tiles."""
    tokens: float
    """In the prompt, tile and end markers included."""
    pixels: float
    """Given to the encoder."""


@dataclass(frozen=True)
class ModelSpec:
    """What a plan knows about one model."""

    reference: str
    """As in the recipe."""
    config: Config
    """config.json."""
    image: Config
    """preprocessor_config.json."""
    source: str
    """Where the sizes are from."""
    shapes: Shapes
    is_local: bool = False
    """Whether its files are here."""
    is_server: bool = False

    def image_tokens(self, sizes: Sequence[Size]) -> ImageTokens:
        """The mean over images of those sizes. UnknownModelError if a value of the image processor is missing."""
        try:
            found = [image_tokens(self.config, self.image, size) for size in sizes]
        except FAULTS as error:
            raise UnknownModelError(
                f"{self.reference}: preprocessor_config.json lacks or garbles {error}: copy it from the checkpoint"
            ) from error
        fields = ("tiles", "patches", "tokens", "pixels")
        return ImageTokens(*(sum(getattr(one, name) for one in found) / len(found) for name in fields))


def model_spec(reference: str) -> ModelSpec:
    """The model behind a reference. Nothing is downloaded: UnknownModelError for a hub model not in models.yaml."""
    if not is_server(reference) and (folder := Path(resolve(reference))).is_dir():
        config: Config = read_object(folder / "config.json")
        try:
            shapes = read_shapes(config, reference)
        except UnknownModelError:
            if config.get("model_type") not in VISION_DEFAULTS or not find_spec("transformers"):
                raise
            from mpa_edge.vlm.transformers.checkpoint import written_out

            config = written_out(folder)  # published with the values only that differ from transformers' defaults
            shapes = read_shapes(config, reference)
        return ModelSpec(reference, config, _image_values(folder), str(folder / "config.json"), shapes, is_local=True)
    name = parse(reference).model if is_server(reference) else reference
    models = known_models()
    if name not in models:
        near = difflib.get_close_matches(name, models, 1, cutoff=0.8)
        tip = f"did you mean {near[0]}? Else " if near else ""
        raise UnknownModelError(
            f"the sizes of '{name}' are not known here: {tip}put its config.json and preprocessor_config.json "
            "into a folder and name that, --set student=DIR or --set teacher=DIR"
        )
    entry = models[name]
    shapes = read_shapes(entry.config, reference)
    return ModelSpec(reference, entry.config, entry.image, entry.source, shapes, is_server=is_server(reference))


def _image_values(folder: Path) -> dict[str, Any]:
    """The image processor's values: part of processor_config.json in newer checkpoints, a separate file in older."""
    for name in PROCESSOR_FILES:
        values = read_object(folder / name) if (folder / name).exists() else {}
        if values and (name.startswith("pre") or "image_processor" in values):
            return dict(values.get("image_processor", values))
    raise UnknownModelError(f"'{folder}' has no {PROCESSOR_FILES[1]}: copy it from the checkpoint")


def read_shapes(config: Config, label: str) -> Shapes:
    """The sizes in a config.json; `label` names the model in errors. UnknownModelError for an unknown model type."""
    model_type = str(config.get("model_type"))
    if model_type not in VISION_DEFAULTS:
        known = ", ".join(sorted(VISION_DEFAULTS))
        raise UnknownModelError(f"{label}: no sizes known for model type '{model_type}': use one of {known}")
    try:
        return _shapes(config, model_type)
    except FAULTS as error:
        raise UnknownModelError(
            f"{label}: config.json lacks or garbles {error}: copy the config.json that belongs to the checkpoint"
        ) from error


def _shapes(config: Config, model_type: str) -> Shapes:
    v = VISION_DEFAULTS[model_type] | dict(config["vision_config"])
    text = dict(config.get("llm_config") or config.get("text_config") or config)
    hidden, heads, layers = (int(text[key]) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head_size = int(text.get("head_dim") or hidden // heads)
    key_value = int(text.get("num_key_value_heads") or heads) * head_size
    query, inner = heads * head_size, int(text.get("intermediate_size") or text["block_ff_dim"])
    if model_type == "qwen3_5":
        query, key_value = mean_layer(text, layers, 3 * query, key_value, gated_delta(text))
    elif model_type == "lfm2_vl":
        # a short convolution has three projections of its input, and one back
        query, key_value = mean_layer(text, layers, 2 * query, key_value, 4 * hidden)
        if text.get("block_auto_adjust_ff_dim", True):
            step = int(text.get("block_multiple_of", 256))
            inner = -(-int(float(text.get("block_ffn_dim_multiplier") or 1) * int(2 * inner / 3)) // step) * step
    looked_up = 0
    if model_type == "gemma4":
        query, key_value, inner = gemma4.mean_layer(text)
        looked_up = gemma4.looked_up(config)
    language = Stack(layers, hidden, inner, query, key_value, gated=True)

    width = int(v["embed_dim"] if model_type == "qwen2_vl" else v["hidden_size"])
    ffn = int(v.get("intermediate_size") or width * v["mlp_ratio"])
    depth = int(v.get("depth") or v["num_hidden_layers"])
    attending = int(v["num_attention_heads"] * v["head_dim"]) if model_type == "gemma4" else width
    vision = Stack(depth, width, ffn, attending, attending, gated=model_type in ("qwen2_5_vl", "gemma4"))
    frames = 1
    if model_type in ("idefics3", "smolvlm"):
        connector = width * int(config.get("scale_factor", 2)) ** 2 * hidden
    elif model_type.startswith("qwen"):
        merged, frames = width * int(v.get("spatial_merge_size", 2)) ** 2, int(v.get("temporal_patch_size", 2))
        mergers = 1 + (len(v.get("deepstack_visual_indexes", DEEPSTACK)) if model_type == "qwen3_vl" else 0)
        connector = mergers * (merged * merged + merged * hidden)
    elif model_type == "lfm2_vl":
        middle = int(config.get("projector_hidden_size", 2560))
        connector = width * int(config.get("downsample_factor", 2)) ** 2 * middle + middle * hidden
    elif model_type == "gemma4":
        connector = width * hidden
    else:
        shuffled = width if model_type == "llava" else int(width / float(config["downsample_ratio"]) ** 2)
        connector = shuffled * hidden + hidden * hidden
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings")))
    inputs = 3 * frames * _edge(v["patch_size"]) ** 2
    return Shapes(vision, inputs, connector, language, int(text["vocab_size"]), tied, looked_up)


def mean_layer(text: Mapping[str, Any], layers: int, query: int, key_value: int, other: int) -> tuple[int, int]:
    """(query, key_value) of equal layers with as many parameters, and a cache as large, as two kinds of layers have.

    `query` and `other` are the widths of all projections but keys and values in a layer of attention, and of all
    projections in one without, whose state does not grow with the tokens.
    """
    kinds = text.get("layer_types") or [None if (i + 1) % 4 else "full_attention" for i in range(layers)]
    share = kinds.count("full_attention") / layers
    width = share * (query + 2 * key_value) + (1 - share) * other
    return round(width / 2 - share * key_value), round(share * key_value)


def gated_delta(text: Mapping[str, Any]) -> int:
    """Width of a gated delta net's projections to queries, keys, values, gate, decay and learning rate, and back."""
    keys, values = (
        int(text[f"linear_num_{part}_heads"]) * int(text[f"linear_{part}_head_dim"]) for part in ("key", "value")
    )
    return 2 * keys + 3 * values + 2 * int(text["linear_num_value_heads"])


def image_tokens(config: Config, image: Config, size: Size) -> ImageTokens:
    """An image of that size under a config.json and the values `image` of a preprocessor_config.json."""
    model_type, vision = (
        str(config["model_type"]),
        VISION_DEFAULTS[config["model_type"]] | dict(config["vision_config"]),
    )
    patch = _edge(vision["patch_size"])
    if model_type.startswith("qwen"):
        # whole groups of patches between a least and a most number of pixels
        budget, merge = image.get("size") or {}, int(vision.get("spatial_merge_size", 2))
        least = int(image.get("min_pixels") or budget["shortest_edge"])
        most = int(image.get("max_pixels") or budget["longest_edge"])
        width, height = qwen2_vl.scaled_size(*size, patch * merge, least, most)
        patches = (width // patch) * (height // patch)
        return ImageTokens(1, patches, patches // merge**2 + 2, width * height)
    if model_type == "gemma4":
        # whole groups of patches, padded to the most that an image may have
        group, most = int(image.get("pooling_kernel_size", 3)), int(image.get("max_soft_tokens", 280))
        width, height = gemma_pixels.scaled_size(*size, patch * group, most)
        patches = most * group**2
        return ImageTokens(1, patches, width * height // (patch * group) ** 2 + 2, patches * patch**2)
    if model_type in ("idefics3", "smolvlm"):
        # whole tiles and an overview; each tile is named, each row of tiles ends a line
        edge = int(image["max_image_size"]["longest_edge"])
        width, height = idefics3.whole_tiles(*idefics3.scaled_size(*size, image["size"]["longest_edge"]), edge)
        rows, tiles = height // edge, (width // edge) * (height // edge) + 1
        if tiles == 2 or not image.get("do_image_splitting", True):
            rows, tiles = 0, 1
        patches = tiles * (edge // patch) ** 2
        marks = 2 * (tiles - 1) + rows + 4 if tiles > 1 else 3
        return ImageTokens(tiles, patches, patches // int(config.get("scale_factor", 2)) ** 2 + marks, tiles * edge**2)
    if model_type == "lfm2_vl":
        # an overview in the image's own shape, and for a large image its tiles, each named by its place
        values = LFM2_IMAGE | {key: value for key, value in image.items() if value is not None}
        columns, rows = lfm2_vl.layout(values, *size)
        width, height = lfm2_vl.overview_size(values, *size)
        cut, edge = columns * rows if columns * rows > 1 else 0, int(values["tile_size"])
        patches = (width // patch) * (height // patch) + cut * (edge // patch) ** 2
        marks = 3 + cut if cut else 2
        tokens = patches // int(values["downsample_factor"]) ** 2 + marks
        return ImageTokens(1 + cut, patches, tokens, width * height + cut * edge**2)
    edge = _edge(vision["image_size"])
    if model_type == "llava":
        return ImageTokens(1, (edge // patch) ** 2, (edge // patch) ** 2, edge**2)
    # InternVL: the grid of tiles that fits best, and an overview if there is more than one tile
    most = int(image.get("max_patches", config.get("max_dynamic_patch", 12)))
    columns, rows = internvl.grid(*size, edge**2, int(image.get("min_patches", 1)), most) if most > 1 else (1, 1)
    tiles = columns * rows + (columns * rows > 1)
    patches = tiles * (edge // patch) ** 2
    return ImageTokens(tiles, patches, round(patches * float(config["downsample_ratio"]) ** 2) + 2, tiles * edge**2)


def _edge(value: Any) -> int:
    """A size given as one number or as two equal ones."""
    return int(value[0] if isinstance(value, list | tuple) else value)
