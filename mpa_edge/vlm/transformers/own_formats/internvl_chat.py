"""InternVL2 and InternVL2.5 as OpenGVLab published them: model type internvl_chat, InternLM2 or Phi-3 as decoder.

Names, sizes and prompts: github.com/OpenGVLab/InternVL, internvl_chat/internvl (conversation.py, model/internvl_chat/,
model/internlm2/, model/phi3/), main branch. Names of transformers: its own convert_internvl_weights_to_hf.py.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import read_json, write_json
from mpa_edge.runs.paths import copy
from mpa_edge.vlm.transformers.files import AGAIN, read_object
from mpa_edge.vlm.transformers.own_formats import vocabulary
from mpa_edge.vlm.transformers.own_formats.rewriting import Rewritten, Rule

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INSTEAD = "use a checkpoint in transformers' own format, for InternVL one whose name ends with -hf"
START, CONTEXT, END = "<img>", "<IMG_CONTEXT>", "</img>"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
INTERNVL2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
INTERNVL2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
NEEDED = {"select_layer": -1, "ps_version": "v2", "pad2square": False, "use_llm_lora": 0, "use_backbone_lora": 0}
"""Settings -> the only values that transformers' InternVL computes."""
NEEDED_OF_VISION = {"qk_normalization": False, "norm_type": "layer_norm"}


@dataclass(frozen=True)
class Conversation:
    """How a model was trained to be asked."""

    start: str
    """In front of the name of whose turn it is."""
    named: str
    """Behind that name."""
    end: str
    """The token that ends a turn, and an answer."""
    after: str
    """Behind it."""
    system: str
    """What the system says where nobody says otherwise."""


CHATML = ("<|im_start|>", "\n", "<|im_end|>")
CONVERSATIONS = {
    "internlm2-chat": Conversation(*CHATML, "", INTERNVL2),
    "phi3-chat": Conversation("<|", "|>\n", "<|end|>", "", INTERNVL2),
    "internvl2_5": Conversation(*CHATML, "\n", INTERNVL2_5),
}
"""`template` of config.json -> conversation, as in conversation.py."""

VISION = r"model.vision_tower.encoder.layer.\1."
TEXT = r"model.language_model.layers.\1."
RULES = (
    Rule(r"vision_model\.embeddings\.class_embedding", ("model.vision_tower.embeddings.cls_token",)),
    Rule(r"vision_model\.embeddings\.position_embedding", ("model.vision_tower.embeddings.position_embeddings",)),
    Rule(
        r"vision_model\.embeddings\.patch_embedding\.(weight|bias)",
        (r"model.vision_tower.embeddings.patch_embeddings.projection.\1",),
    ),
    Rule(
        r"vision_model\.encoder\.layers\.(\d+)\.attn\.qkv\.(weight|bias)",
        tuple(rf"{VISION}attention.{part}_proj.\2" for part in "qkv"),
        heads=(1, 1, 1),
    ),
    Rule(
        r"vision_model\.encoder\.layers\.(\d+)\.attn\.proj\.(weight|bias)", (rf"{VISION}attention.projection_layer.\2",)
    ),
    Rule(r"vision_model\.encoder\.layers\.(\d+)\.(mlp\.fc[12])\.(weight|bias)", (rf"{VISION}\2.\3",)),
    Rule(r"vision_model\.encoder\.layers\.(\d+)\.norm1\.(weight|bias)", (rf"{VISION}layernorm_before.\2",)),
    Rule(r"vision_model\.encoder\.layers\.(\d+)\.norm2\.(weight|bias)", (rf"{VISION}layernorm_after.\2",)),
    Rule(r"vision_model\.encoder\.layers\.(\d+)\.ls([12])", (rf"{VISION}lambda_\2",)),
    Rule(r"mlp1\.0\.(weight|bias)", (r"model.multi_modal_projector.layer_norm.\1",)),
    Rule(r"mlp1\.1\.(weight|bias)", (r"model.multi_modal_projector.linear_1.\1",)),
    Rule(r"mlp1\.3\.(weight|bias)", (r"model.multi_modal_projector.linear_2.\1",)),
)
INTERNLM2 = (
    Rule(r"language_model\.model\.tok_embeddings\.weight", ("model.language_model.embed_tokens.weight",)),
    Rule(r"language_model\.model\.norm\.weight", ("model.language_model.norm.weight",)),
    Rule(r"language_model\.output\.weight", ("lm_head.weight",)),
    Rule(r"language_model\.model\.layers\.(\d+)\.attention\.wo\.(weight|bias)", (rf"{TEXT}self_attn.o_proj.\2",)),
    *(
        Rule(rf"language_model\.model\.layers\.(\d+)\.{theirs}\.weight", (f"{TEXT}{ours}.weight",))
        for theirs, ours in {
            r"feed_forward\.w1": "mlp.gate_proj",
            r"feed_forward\.w2": "mlp.down_proj",
            r"feed_forward\.w3": "mlp.up_proj",
            "attention_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
        }.items()
    ),
)
INTERNLM2_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 2048, "bias": True}
"""Of configuration_internlm2.py."""
PHI3_TOKENS = {"bos": 1, "eos": 32000, "pad": 32000}
"""Of configuration_phi3.py."""


def read(folder: Path, config: dict[str, Any]) -> Rewritten:
    """The checkpoint as transformers has it; `config` is its config.json. MpaError where transformers has no such."""
    vision, text = config.get("vision_config"), config.get("llm_config")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise MpaError(f"'{folder / 'config.json'}' lacks vision_config or llm_config: {AGAIN}")
    try:
        _require(folder, config, NEEDED)
        _require(folder, vision, NEEDED_OF_VISION)
        size, ratio = int(vision["image_size"]), float(config.get("downsample_ratio", 0.5))
        _require(folder, config, {"force_image_size": size})
        if config.get("dynamic_image_size"):
            _require(folder, config, {"use_thumbnail": True})
        conversation = CONVERSATIONS.get(config.get("template", ""))
        if conversation is None:
            known = ", ".join(CONVERSATIONS)
            raise MpaError(f"'{folder}': template '{config.get('template')}' is not one of {known}: {INSTEAD}")
        language, rules = DECODERS[_decoder(folder, text)](text)
        tokens = round((size // int(vision["patch_size"])) ** 2 * ratio**2)
        words = vocabulary.sentencepiece_tokenizer(folder)
        ids = {token: words.token_to_id(token) for token in (START, CONTEXT, END, conversation.end)}
        if missing := [token for token, i in ids.items() if i is None]:
            raise MpaError(f"the tokenizer in '{folder}' has no token {missing[0]}: {AGAIN}")
        made = {
            "architectures": ["InternVLForConditionalGeneration"],
            "model_type": "internvl",
            "text_config": {**language, "tie_word_embeddings": False},
            "vision_config": _vision(vision, size),
            "image_token_id": ids[CONTEXT],
            "image_seq_length": tokens,
            "downsample_ratio": ratio,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": False,
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MpaError(f"'{folder / 'config.json'}' lacks or garbles {error}: {AGAIN}") from error
    return Rewritten(
        made,
        {"eos_token_id": ids[conversation.end], "pad_token_id": language["pad_token_id"]},
        (*RULES, *rules),
        lambda out: _write_processor(folder, config, words, conversation, tokens, out),
    )


def _require(folder: Path, found: Mapping[str, Any], needed: Mapping[str, Any]) -> None:
    for key, value in needed.items():
        if found.get(key, value) not in (value, None):
            why = "merge its LoRA with the authors' tools/merge_lora.py first" if "lora" in key else INSTEAD
            raise MpaError(f"'{folder}': {key} is {found[key]!r} in config.json, and must be {value!r} here: {why}")


def _decoder(folder: Path, text: Mapping[str, Any]) -> str:
    kind = str(text.get("model_type"))
    if kind not in DECODERS:
        raise MpaError(f"'{folder}': decoder '{kind}' is not one of {', '.join(DECODERS)}: {INSTEAD}")
    return kind


def _vision(vision: Mapping[str, Any], size: int) -> dict[str, Any]:
    same = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "layer_norm_eps",
        "hidden_act",
    )
    return {
        "model_type": "internvl_vision",
        **{key: vision[key] for key in same if key in vision},
        "attention_bias": vision.get("qkv_bias", False),
        "image_size": [size, size],
        "patch_size": [vision["patch_size"]] * 2,
    }


def _internlm2(text: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Rule, ...]]:
    """A Llama whose keys and values are fused with the queries of their group.

    "dynamic" scaling is left out: up to max_position_embeddings it changes nothing, and no prompt is longer.
    """
    values = INTERNLM2_DEFAULTS | {key: value for key, value in text.items() if value is not None}
    heads, scaling = int(values["num_attention_heads"]), values.get("rope_scaling") or {"type": "dynamic"}
    groups = int(values.get("num_key_value_heads") or heads)
    rope = {"rope_type": "default", "rope_theta": float(values["rope_theta"])}
    if scaling["type"] != "dynamic":
        rope |= {"rope_type": scaling["type"], "factor": scaling["factor"]}
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")
    language = {
        "model_type": "llama",
        **{key: values[key] for key in same},
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": values["max_position_embeddings"],
        "hidden_act": values.get("hidden_act", "silu"),
        "attention_bias": bool(values["bias"]),
        "rope_parameters": rope,
        **{f"{name}_token_id": values.get(f"{name}_token_id", i) for name, i in (("bos", 1), ("eos", 2), ("pad", 2))},
    }
    fused = Rule(
        r"language_model\.model\.layers\.(\d+)\.attention\.wqkv\.(weight|bias)",
        tuple(rf"{TEXT}self_attn.{part}_proj.\2" for part in "qkv"),
        groups=groups,
        heads=(heads // groups, 1, 1),
    )
    return language, (*INTERNLM2, fused)


def _phi3(text: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Rule, ...]]:
    """As in transformers, down to the names; a window that is no shorter than the context is none."""
    values = {key: value for key, value in text.items() if value is not None}
    longest = values.get("max_position_embeddings", 4096)
    if values.get("sliding_window", longest) < longest:
        raise ValueError(f"sliding_window {values['sliding_window']}")
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    rope = {"rope_type": "default", "rope_theta": float(values.get("rope_theta", 10000))}
    if scaling := values.get("rope_scaling"):
        if scaling["type"] not in ("su", "longrope"):
            raise ValueError(f"rope_scaling of type {scaling['type']}")
        factors = {key: scaling[key] for key in ("short_factor", "long_factor")}
        original = values.get("original_max_position_embeddings", 4096)
        factors["factor"] = longest / original
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": original, **factors}
    language = {
        "model_type": "phi3",
        **{key: values[key] for key in same},
        "num_key_value_heads": values.get("num_key_value_heads", values["num_attention_heads"]),
        "max_position_embeddings": longest,
        "original_max_position_embeddings": values.get("original_max_position_embeddings", 4096),
        "rms_norm_eps": values.get("rms_norm_eps", 1e-5),
        "hidden_act": values.get("hidden_act", "silu"),
        "rope_parameters": rope,
        **{f"{key}_token_id": values.get(f"{key}_token_id", i) for key, i in PHI3_TOKENS.items()},
    }
    return language, (
        Rule(r"language_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", ()),
        Rule(r"language_model\.model\.(.+)", (r"model.language_model.\1",)),
        Rule(r"language_model\.lm_head\.weight", ("lm_head.weight",)),
    )


DECODERS = {"internlm2": _internlm2, "phi3": _phi3}
"""`model_type` of llm_config -> its config in transformers, and the rules for its tensors."""


def _write_processor(
    folder: Path, config: Mapping[str, Any], words: Tokenizer, conversation: Conversation, tokens: int, out: Path
) -> None:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor, PreTrainedTokenizerFast

    theirs, size = read_object(folder / vocabulary.CONFIG), int(config["vision_config"]["image_size"])
    unknown = vocabulary.token_of(theirs, "unk_token") or "<unk>"
    # videos are not read, but the processor wants their token: one that no question keeps
    named = {"start_image_token": START, "end_image_token": END, "context_image_token": CONTEXT, "video_token": unknown}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        bos_token=vocabulary.token_of(theirs, "bos_token") or "<s>",
        eos_token=conversation.end,
        pad_token=vocabulary.token_of(theirs, "pad_token") or "</s>",
        unk_token=unknown,
        extra_special_tokens=named,
    )
    images = GotOcr2ImageProcessor(
        size={"height": size, "width": size},
        crop_to_patches=bool(config.get("dynamic_image_size")),
        min_patches=int(config.get("min_dynamic_patch", 1)),
        max_patches=int(config.get("max_dynamic_patch", 6)),
        **IMAGENET,
    )
    system = str(config.get("system_message") or conversation.system)
    before = vocabulary.opening(folder, f"{conversation.start}system{conversation.named}".strip())
    template = _template(conversation, system, before, vocabulary.stripping_tokens(theirs))
    processor = InternVLProcessor(
        images, tokenizer, InternVLVideoProcessor(), image_seq_length=tokens, chat_template=template
    )
    processor.save_pretrained(out)
    # what llama.cpp reads beside tokenizer.json
    copy(folder / vocabulary.MODEL, out / vocabulary.MODEL)
    blank = json.loads(words.to_str())["pre_tokenizer"]["prepend_scheme"] == "always"
    written = read_json(out / vocabulary.CONFIG)
    write_json(out / vocabulary.CONFIG, written | {"add_prefix_space": blank})


def _template(conversation: Conversation, system: str, before: str, strips: Collection[str]) -> str:
    """The conversation as a chat template: an image stands in front of its question, on a line of its own.

    `before`: what stands in front of all. `strips`: tokens behind which the authors' tokenizer skips blanks; ours does
    not, nor does llama.cpp's, so the template writes none.
    """

    def begin(role: str) -> str:
        token = f"{conversation.start}{role}{conversation.named}"
        return token.rstrip() if token.rstrip() in strips else token

    def said(text: str) -> str:
        return "{{ " + json.dumps(text, ensure_ascii=False) + " }}"

    end = said(conversation.end + conversation.after)
    return (
        "{% if messages[0]['role'] != 'system' %}" + said(before + begin("system") + system) + end + "{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}" + said(begin("user")) + "{% elif message['role'] == 'assistant' %}"
        "" + said(begin("assistant")) + "{% else %}" + said(begin("system")) + "{% endif %}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + said(f"{CONTEXT}\n") + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}" + end + "{% endfor %}"
        "{% if add_generation_prompt %}" + said(begin("assistant")) + "{% endif %}"
    )
