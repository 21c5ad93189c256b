"""What every family promises, on tiny random models of its model types: LoRA goes where it says, merges, reloads."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from mpa_edge.errors import MpaError
from mpa_edge.families import REWRITTEN, Family, families, family_of
from mpa_edge.vlm.transformers import checkpoint, own_formats
from tests.families import zoo

MODEL_TYPES = sorted(t for family in families().values() for t in family.model_types)
PARTS = ("language", "vision", "connector")
# where a part lives, and what a linear layer of it may be called: written down a second time on purpose
LLAVA_HOME = {"language": "language_model", "vision": "vision_tower", "connector": "multi_modal_projector"}
QWEN_HOME = {"language": "language_model", "vision": "visual.blocks", "connector": "visual.merger"}
HOME = {
    "smolvlm": {"language": "text_model", "vision": "vision_model", "connector": "connector"},
    "qwen2_vl": QWEN_HOME,
    "qwen2_5_vl": QWEN_HOME,
    "qwen3_vl": {**QWEN_HOME, "connector": ("visual.merger", "visual.deepstack_merger_list")},
    "qwen3_5": QWEN_HOME,
    "gemma4": {"language": "language_model", "vision": "vision_tower.encoder", "connector": "embed_vision"},
    "llava": LLAVA_HOME,
    "internvl": LLAVA_HOME,
    "lfm2_vl": LLAVA_HOME,
}
NEVER = ("lm_head", "embed_tokens", "patch_embed", "position_embedding", "norm", "ln_q", "conv1d")
# logits have a standard deviation of 2.5; the same sum in another order moves them by 1e-5 to 1e-4
SAME = 1e-3
CASES = {
    **{model_type: {} for model_type in MODEL_TYPES},
    "llava clip": {"tower": "clip"},
    "internvl 2B": {"language": "llama"},
    "internvl 3.5": {"language": "qwen3"},
    "internvl 4B": {"language": "phi3"},
}


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model_type(case: str) -> str:
    return case.partition(" ")[0]


@pytest.fixture(scope="module")
def base(case: str, model_type: str) -> Any:
    return checkpoint.load_model(str(zoo.checkpoint(model_type, **CASES[case])), "cpu")


@pytest.fixture(scope="module")
def inputs(case: str, model_type: str) -> Any:
    """One wide image and a question."""
    processor = checkpoint.load_processor(str(zoo.checkpoint(model_type, **CASES[case])))
    image = zoo.noise(120, 40)
    text = checkpoint.chat_prompt(processor, "How many?")
    return processor(text=[text], images=[[image]], add_special_tokens=False, return_tensors="pt")


def linears(model: Any) -> dict[str, str]:
    """Name of each linear layer -> the part it belongs to, or "head"."""
    homes = HOME[family_of(model.config.model_type).name]
    modules = {name: module for name, module in model.named_modules() if not name.endswith("patch_embedding")}
    names = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    return {name: next((part for part, home in homes.items() if is_in(home, name)), "head") for name in names}


def is_in(home: str | tuple[str, ...], name: str) -> bool:
    return any(f".{one}." in name for one in ((home,) if isinstance(home, str) else home))


def lora(model: Any, parts: tuple[str, ...], model_type: str) -> PeftModel:
    """A copy of the model with an adapter whose weights are random instead of zero."""
    regex = family_of(model_type).target_modules(parts)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, lora_alpha=8, target_modules=regex))
    random = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1, generator=random)
    return adapted.eval()


@torch.inference_mode()
def logits(model: Any, inputs: Any) -> Tensor:
    return model(**inputs).logits


def test_every_model_type_has_a_tiny_model_and_one_family() -> None:
    assert sorted(zoo.MODEL_TYPES) == MODEL_TYPES == sorted(set(MODEL_TYPES))
    assert sorted(HOME) == sorted(families())


def test_the_folder_is_the_registry() -> None:
    for name, family in families().items():
        assert family.name == name
        assert family.title
        assert all(family_of(model_type) is family for model_type in family.model_types)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_all_linear_layers_of_its_own_and_no_other(base: Any, model_type: str, part: str) -> None:
    regex = re.compile(family_of(model_type).target_modules((part,)))
    hit = {name for name, _ in base.named_modules() if regex.fullmatch(name)}
    assert hit == {name for name, home in linears(base).items() if home == part}
    assert not [name for name in hit if any(word in name for word in NEVER)]


def test_what_a_bare_list_of_names_hits_depends_on_the_model(base: Any, model_type: str) -> None:
    """Why the targets are regular expressions over whole names."""
    if model_type == "gemma4":  # the tower's linear layers are wrapped, and the wrappers have the names
        with pytest.raises(ValueError, match="Gemma4ClippableLinear"):
            get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj"]))
        return
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj"]))
    tower = HOME[family_of(model_type).name]["vision"]
    hit = any(f".{tower}." in name and "lora_" in name for name, _ in adapted.named_parameters())
    assert hit == (not model_type.startswith("qwen"))


@pytest.mark.parametrize("parts", [("language",), ("vision",), ("language", "connector"), PARTS])
def test_peft_trains_exactly_these_parts(base: Any, model_type: str, parts: tuple[str, ...]) -> None:
    adapted = lora(base, parts, model_type)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name for name in trained)
    layers = {re.sub(r"^base_model\.model\.|\.lora_[AB]\..*", "", name) for name in trained}
    assert layers == {name for name, home in linears(base).items() if home in parts}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_has_a_say_in_the_answer(base: Any, inputs: Any, model_type: str, part: str) -> None:
    assert (logits(lora(base, (part,), model_type), inputs) - logits(base, inputs)).abs().max() > 100 * SAME


@pytest.mark.parametrize("parts", [("language",), PARTS])
def test_adapter_and_merged_checkpoint_survive_the_disk(
    base: Any, inputs: Any, model_type: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    adapted = lora(base, parts, model_type)
    expected = logits(adapted, inputs)
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    assert (logits(again, inputs) - expected).abs().max() < SAME
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = checkpoint.load_model(str(tmp_path / "merged"), "cpu")
    assert (logits(merged, inputs) - expected).abs().max() < SAME
    before, after = base.state_dict(), merged.state_dict()
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    changed = {key.removesuffix(".weight") for key in before if not torch.equal(before[key], after[key])}
    assert changed == {name for name, home in linears(base).items() if home in parts}


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}])
def test_variants_of_lora_merge_as_well(base: Any, inputs: Any, model_type: str, options: dict[str, bool]) -> None:
    regex = family_of(model_type).target_modules(("language", "vision"))
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules=regex, **options)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    expected = logits(adapted, inputs)
    assert (logits(adapted.merge_and_unload(), inputs) - expected).abs().max() < SAME


def test_a_model_type_nobody_covers_names_those_that_are() -> None:
    with pytest.raises(MpaError) as caught:
        family_of("florence2")
    assert str(caught.value) == f"no family for model type 'florence2': use a student of type {', '.join(MODEL_TYPES)}"


@pytest.mark.parametrize(
    ("model_type", "instead"),
    [
        ("tiny_llava_phi", "bczhou/tiny-llava-v1-hf"),
        ("llava_llama", "llava-hf/llava-1.5-7b-hf"),
    ],
)
def test_a_format_of_the_authors_own_names_one_of_transformers(model_type: str, instead: str) -> None:
    with pytest.raises(MpaError, match=rf"'{model_type}' needs its authors' own code, .* use {instead}"):
        family_of(model_type)


def test_a_format_that_is_rewritten_belongs_to_what_it_becomes() -> None:
    assert REWRITTEN.keys() == own_formats.FORMATS.keys()
    assert {own: family_of(own).name for own in REWRITTEN} == REWRITTEN


def test_a_part_that_a_family_lacks_names_those_it_has() -> None:
    family = Family("x", "X", ("x",), {"language": "a"})
    with pytest.raises(MpaError, match=r"family 'x' has no LoRA targets in vision: use level\.targets from language"):
        family.target_modules(("language", "vision"))
