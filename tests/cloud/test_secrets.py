"""Names travel, values do not."""

from __future__ import annotations

import pytest

from mpa_edge.cloud.secrets import redactor, secret_names
from mpa_edge.config.library import load_recipe
from mpa_edge.errors import MpaError

OWN = load_recipe("minicharts")
HOSTED = load_recipe("charts-served", ["teacher=openai:https://models.example/v1#m"])
VALUE = "canary-5f2b-9d41"


def test_the_hub_token_goes_where_it_is_set() -> None:
    assert secret_names(OWN, [], {"HF_TOKEN": VALUE}, hub=False) == ("HF_TOKEN",)
    assert secret_names(OWN, [], {}, hub=False) == ()
    assert secret_names(OWN, [], {}, hub=True) == ("HF_TOKEN",)  # hf knows it from its own login


def test_the_key_of_the_teacher_goes() -> None:
    assert secret_names(HOSTED, [], {"OPENAI_API_KEY": VALUE}, hub=False) == ("OPENAI_API_KEY",)
    assert secret_names(OWN, [], {"OPENAI_API_KEY": VALUE}, hub=False) == ()
    named = load_recipe(
        "charts-served",
        ["teacher=openai:https://models.example/v1#m", "teacher_server.api_key_env=MINE_API_KEY"],
    )
    assert secret_names(named, [], {"MINE_API_KEY": VALUE}, hub=False) == ("MINE_API_KEY",)
    with pytest.raises(MpaError, match="no MINE_API_KEY"):
        secret_names(named, [], {}, hub=False)


def test_a_value_in_place_of_a_name_is_refused_and_not_repeated() -> None:
    for word in (f"MINE={VALUE}", VALUE, ""):
        with pytest.raises(MpaError, match="takes the name") as raised:
            secret_names(OWN, [word], {}, hub=False)
        assert VALUE not in str(raised.value)


def test_a_name_that_is_not_set_is_said_at_once() -> None:
    with pytest.raises(MpaError, match="export MINE first"):
        secret_names(OWN, ["MINE"], {"MINE": ""}, hub=False)


def test_values_are_taken_out_of_what_programs_print() -> None:
    here = {
        "HF_TOKEN": VALUE,
        "PLAIN": "plain-plain",
        "AWS_SECRET_ACCESS_KEY": f"{VALUE}-longer",
        "MY_PASSWORD": "short",
    }
    redact = redactor(["PLAIN"], here)
    text = redact(f"{VALUE}-longer {VALUE} plain-plain short")
    assert text == "(AWS_SECRET_ACCESS_KEY) (HF_TOKEN) (PLAIN) short"
    assert redactor([], here)("plain-plain") == "plain-plain"
    key = "-----BEGIN KEY-----\nabcdefghijkl\nmnopqrstuvwx\n"
    assert redactor([], {"MY_KEY": key})("loaded mnopqrstuvwx") == "loaded (MY_KEY)"
