"""What may stand in a task file or on a command line."""

from __future__ import annotations

import pytest

from mpa_edge.cloud.names import bucket_url, checked_url, job_name, require_printable, secret_names, split_bucket
from mpa_edge.config.library import load_recipe
from mpa_edge.errors import MpaError

OWN = load_recipe("minicharts")
HOSTED = load_recipe("charts-served", ["teacher=openai:https://models.example/v1#m"])
VALUE = "canary-5f2b-9d41"
KEY = "AKIA" + "CANARYCANARY"


@pytest.mark.parametrize("recipe", ["minicharts", "qwen2.5_vl", "7b-charts", "a" * 64, "x-.-y-"])
def test_every_recipe_has_a_name_that_clouds_take(recipe: str) -> None:
    assert job_name(job_name(None, recipe), "x") == job_name(None, recipe)


@pytest.mark.parametrize("name", ["", "A", "9x", "a b", "a;rm -rf", "a$(id)", "x-", "é", "a\nb", "a" * 41, "../x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(MpaError, match="lower case letters"):
        job_name(name, "minicharts")


@pytest.mark.parametrize(
    "url",
    ["photos", "/photos", "s3://", "ftp://host/x", "s3://b/../c", "s3://b/a b", "s3://b/$(id)", "hf://buckets/o/b"],
)
def test_what_sky_cannot_mount_is_refused(url: str) -> None:
    with pytest.raises(MpaError, match=r"--bucket s3://my-bucket/runs"):
        bucket_url(url, "sky")


@pytest.mark.parametrize("url", [f"s3://{KEY}:{KEY}@bucket/x", f"s3://bucket/x?key={KEY}", f"s3://bucket/#{KEY}"])
def test_a_key_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(MpaError, match="is not a plain bucket URL") as raised:
        checked_url("--images", url, "sky")
    assert KEY not in str(raised.value)


def test_a_missing_bucket_is_asked_for() -> None:
    with pytest.raises(MpaError, match=r"--bucket s3://"):
        bucket_url(None, "sky")
    with pytest.raises(MpaError, match=r"--bucket hf://buckets/"):
        bucket_url(None, "hf")
    with pytest.raises(MpaError, match="is not a bucket"):
        bucket_url("hf://datasets/me/x", "hf")


def test_addresses() -> None:
    assert bucket_url("s3://kept/", "sky") == "s3://kept"
    assert split_bucket("gs://kept/a/b") == ("gs://kept", "a/b")
    assert bucket_url("hf://buckets/me/kept", "hf") == "hf://buckets/me/kept"


def test_words_that_a_file_would_not_keep() -> None:
    require_printable(["it's", "a b", "$HOME", "größe"])
    with pytest.raises(MpaError, match="control character"):
        require_printable(["a\rb"])


# --- secrets ---------------------------------------------------------------------------------------------------------


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
    with pytest.raises(MpaError, match="needs MINE_API_KEY, which is not set"):
        secret_names(named, [], {}, hub=False)


def test_a_value_in_place_of_a_name_is_refused_and_not_repeated() -> None:
    for word in (f"MINE={VALUE}", VALUE, ""):
        with pytest.raises(MpaError, match="takes the name") as raised:
            secret_names(OWN, [word], {}, hub=False)
        assert VALUE not in str(raised.value)


def test_a_name_that_is_not_set_is_said_at_once() -> None:
    with pytest.raises(MpaError, match="export MINE first"):
        secret_names(OWN, ["MINE"], {"MINE": ""}, hub=False)
