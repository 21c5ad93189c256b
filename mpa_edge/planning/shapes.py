"""The sizes of a vision-language model, read from its config.json: enough to count parameters, operations and bytes.

Counts follow the modules of transformers 5.23 for each `model_type`; `tests/planning` compares them with those modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mpa_edge.errors import MpaError

Config = Mapping[str, Any]
# what transformers 5.23 takes where a published config.json says nothing
VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "idefics3": {"hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16},
    "siglip": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "internvl": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "qwen2_vl": {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16},
    "qwen2_5_vl": {"depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "window_size": 112},
    "qwen3_vl": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16},
}
QUERY_BIAS = ("qwen2", "qwen2_vl", "qwen2_5_vl", "qwen2_vl_text", "qwen2_5_vl_text")
QUERY_NORM = ("qwen3", "qwen3_vl", "qwen3_vl_text")


@dataclass(frozen=True)
class Stack:
    """A pile of equal transformer layers."""

    layers: int
    """How many."""
    hidden: int
    """Width of what flows through."""
    ffn: int
    """Width inside the MLP."""
    query: int
    """Heads times head size."""
    key_value: int
    """Key-value heads times head size."""
    gated: bool
    """Whether the MLP has three matrices (gate, up, down) or two."""

    @property
    def matrices(self) -> int:
        """Parameters with which every token is multiplied."""
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.key_value
        return self.layers * (attention + (3 if self.gated else 2) * self.hidden * self.ffn)

    def attention_flops(self, tokens: int, seen: int) -> int:
        """Scores and weighted sums of `tokens` queries over `seen` keys: two products, a multiply and an add each."""
        return 4 * self.layers * self.query * tokens * seen


@dataclass(frozen=True)
class Shapes:
    """A vision encoder, a connector and a language model."""

    model_type: str
    """As config.json says."""
    vision: Stack
    """The encoder's layers."""
    patch_inputs: int
    """Numbers in one patch: colours times frames times its area."""
    window_patches: int
    """Patches that see each other in most layers; 0: all of a picture."""
    full_layers: int
    """Layers in which all patches of a picture see each other, where there are windows."""
    connector: int
    """Parameters with which every image token is multiplied."""
    language: Stack
    """The decoder's layers."""
    vocabulary: int
    """Rows of the embeddings."""
    tied: bool
    """Whether the output uses the input's embeddings."""
    small: int
    """Norms, biases, positions: held in memory, next to nothing to compute."""

    @property
    def head(self) -> int:
        """Parameters of the product that gives the logits."""
        return self.vocabulary * self.language.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        matrices = self.vision.matrices + self.patch_inputs * self.vision.hidden + self.connector
        return matrices + self.language.matrices + self.head * (1 if self.tied else 2) + self.small

    @property
    def cache_numbers(self) -> int:
        """Keys and values that one token leaves in the cache."""
        return 2 * self.language.layers * self.language.key_value


def read_shapes(config: Config, label: str) -> Shapes:
    """The shapes behind a config.json. MpaError for a model type without a rule, or a size that is missing."""
    model_type = str(config.get("model_type"))
    rule = RULES.get(model_type)
    if rule is None:
        raise MpaError(f"{label}: no sizes known for model type '{model_type}': use one of {', '.join(sorted(RULES))}")
    try:
        return rule(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise MpaError(
            f"{label}: config.json lacks or garbles {error}: copy the config.json that belongs to the checkpoint"
        ) from error


def _edge(value: Any) -> int:
    """A size that is one number, or two equal ones."""
    return int(value[0] if isinstance(value, list | tuple) else value)


def _language(config: Config) -> tuple[Stack, int]:
    """(the decoder, its norms and biases)."""
    hidden, heads, layers = (int(config[key]) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head = int(config.get("head_dim") or hidden // heads)
    key_value = int(config.get("num_key_value_heads") or heads) * head
    stack = Stack(layers, hidden, int(config["intermediate_size"]), heads * head, key_value, gated=True)
    kind = config.get("model_type")
    extra = stack.query + 2 * key_value if kind in QUERY_BIAS else 0
    extra += 2 * head if kind in QUERY_NORM else 0
    return stack, layers * (2 * hidden + extra) + hidden


def _text_of(config: Config, default: str) -> dict[str, Any]:
    """The language model's part; older files have it at the top level."""
    text = dict(config.get("text_config") or config)
    own = text.get("model_type")
    return text | {"model_type": default if own in (None, config.get("model_type")) else own}


def _plain_vision(config: Config, kind: str) -> tuple[Stack, Config]:
    """Two-matrix layers with as many key-value heads as heads: SigLIP, CLIP, InternViT."""
    v = VISION_DEFAULTS[kind] | dict(config["vision_config"])
    width = int(v["hidden_size"])
    layers, ffn = int(v["num_hidden_layers"]), int(v["intermediate_size"])
    return Stack(layers, width, ffn, width, width, gated=False), v


def _layer_small(stack: Stack) -> int:
    """Biases of the four projections and of the MLP, and two norms with scale and shift."""
    return stack.layers * (4 * stack.hidden + stack.ffn + stack.hidden + 4 * stack.hidden)


def _grid(v: Config) -> int:
    """Patches of one tile."""
    return (_edge(v["image_size"]) // _edge(v["patch_size"])) ** 2


def _tied(config: Config, text: Config, default: bool) -> bool:
    found = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    return default if found is None else bool(found)


def _idefics3(config: Config) -> Shapes:
    text = _text_of(config, "llama")
    vision, v = _plain_vision(config, "idefics3")
    language, small = _language(text)
    width, merged = vision.hidden, vision.hidden * int(config.get("scale_factor", 2)) ** 2
    small += _layer_small(vision) + width + _grid(v) * width + 2 * width
    return Shapes(
        model_type=str(config["model_type"]),
        vision=vision,
        patch_inputs=3 * _edge(v["patch_size"]) ** 2,
        window_patches=0,
        full_layers=vision.layers,
        connector=merged * language.hidden,
        language=language,
        vocabulary=int(text["vocab_size"]),
        tied=_tied(config, text, False),
        small=small,
    )


def _llava(config: Config) -> Shapes:
    text = _text_of(config, "llama")
    vision, v = _plain_vision(config, "siglip")
    language, small = _language(text)
    width, out, clip = vision.hidden, language.hidden, "clip" in str(v.get("model_type"))
    small += _layer_small(vision) + 2 * width + 2 * out
    # CLIP: a class token, a norm before the layers, no bias on the patches; SigLIP: the opposite, and a pooling head
    small += (_grid(v) + 1) * width + width + 2 * width if clip else _grid(v) * width + width
    if not clip and v.get("vision_use_head", True):
        small += width + _layer_small(Stack(1, width, vision.ffn, width, width, False)) - 2 * width
        small += Stack(1, width, vision.ffn, width, width, gated=False).matrices
    return Shapes(
        model_type="llava",
        vision=vision,
        patch_inputs=3 * _edge(v["patch_size"]) ** 2,
        window_patches=0,
        full_layers=vision.layers,
        connector=width * out + out * out,
        language=language,
        vocabulary=int(text["vocab_size"]),
        tied=_tied(config, text, False),
        small=small,
    )


def _internvl(config: Config) -> Shapes:
    """The `-hf` checkpoints, and `internvl_chat`: the same layers under other names."""
    text = _text_of({"text_config": config["llm_config"]} if "llm_config" in config else config, "qwen2")
    vision, v = _plain_vision(config, "internvl")
    language, small = _language(text)
    width, out, joined = vision.hidden, language.hidden, int(vision.hidden / float(config["downsample_ratio"]) ** 2)
    bias = bool(v.get("attention_bias", v.get("qkv_bias", False)))
    small += _layer_small(vision) + 2 * vision.layers * width - (0 if bias else 3 * vision.layers * width)
    small += width + (_grid(v) + 1) * width + width + 2 * joined + 2 * out
    return Shapes(
        model_type=str(config["model_type"]),
        vision=vision,
        patch_inputs=3 * _edge(v["patch_size"]) ** 2,
        window_patches=0,
        full_layers=vision.layers,
        connector=joined * out + out * out,
        language=language,
        vocabulary=int(text["vocab_size"]),
        tied=_tied(config, text, False),
        small=small,
    )


def _qwen(config: Config, v: Config, vision: Stack, window: int, full: int, small: int, mergers: int = 1) -> Shapes:
    """What the Qwen models share: patches of several frames, groups of patches merged by two matrices."""
    text = _text_of(config, str(config["model_type"]))
    language, own = _language(text)
    area, frames = _edge(v.get("patch_size", 14)) ** 2, _edge(v.get("temporal_patch_size", 2))
    merged = vision.hidden * int(v.get("spatial_merge_size", 2)) ** 2
    return Shapes(
        model_type=str(config["model_type"]),
        vision=vision,
        patch_inputs=3 * frames * area,
        window_patches=window,
        full_layers=full,
        connector=mergers * (merged * merged + merged * language.hidden),
        language=language,
        vocabulary=int(text["vocab_size"]),
        tied=_tied(config, text, False),
        small=small + own + mergers * (merged + language.hidden),
    )


def _qwen2_vl(config: Config) -> Shapes:
    v = VISION_DEFAULTS["qwen2_vl"] | dict(config["vision_config"])
    width, layers = int(v["embed_dim"]), int(v["depth"])
    vision = Stack(layers, width, int(width * v["mlp_ratio"]), width, width, gated=False)
    return _qwen(config, v, vision, 0, layers, _layer_small(vision) + 2 * width)


def _qwen2_5_vl(config: Config) -> Shapes:
    v = VISION_DEFAULTS["qwen2_5_vl"] | dict(config["vision_config"])
    width, layers, ffn = int(v["hidden_size"]), int(v["depth"]), int(v["intermediate_size"])
    vision = Stack(layers, width, ffn, width, width, gated=True)
    # biases of all projections, norms without a shift
    small = layers * (4 * width + 2 * ffn + width + 2 * width) + width
    window = (int(v["window_size"]) // _edge(v.get("patch_size", 14))) ** 2
    return _qwen(config, v, vision, window, len(v.get("fullatt_block_indexes", (7, 15, 23, 31))), small)


def _qwen3_vl(config: Config) -> Shapes:
    v = VISION_DEFAULTS["qwen3_vl"] | {"patch_size": 16} | dict(config["vision_config"])
    width, layers, ffn = int(v["hidden_size"]), int(v["depth"]), int(v["intermediate_size"])
    vision = Stack(layers, width, ffn, width, width, gated=False)
    deep = len(v.get("deepstack_visual_indexes", (8, 16, 24)))
    merged = width * int(v.get("spatial_merge_size", 2)) ** 2
    small = _layer_small(vision) + width + int(v.get("num_position_embeddings", 2304)) * width
    return _qwen(config, v, vision, 0, layers, small + 2 * width + deep * 2 * merged, mergers=1 + deep)


RULES: dict[str, Callable[[Config], Shapes]] = {
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "llava": _llava,
    "internvl": _internvl,
    "internvl_chat": _internvl,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
}
