"""What may stand in a task file or on a command line."""

from __future__ import annotations

import pytest

from mpa_edge.cloud.names import bucket_url, checked_url, job_name, printable, split_bucket
from mpa_edge.errors import MpaError

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
    with pytest.raises(MpaError, match="no plain address") as raised:
        checked_url("--images", url, "sky")
    assert KEY not in str(raised.value)


def test_a_missing_bucket_is_asked_for() -> None:
    with pytest.raises(MpaError, match=r"--bucket s3://"):
        bucket_url(None, "sky")
    with pytest.raises(MpaError, match=r"--bucket hf://buckets/"):
        bucket_url(None, "hf")
    with pytest.raises(MpaError, match="is no bucket"):
        bucket_url("hf://datasets/me/x", "hf")


def test_addresses() -> None:
    assert bucket_url("s3://kept/", "sky") == "s3://kept"
    assert split_bucket("gs://kept/a/b") == ("gs://kept", "a/b")
    assert bucket_url("hf://buckets/me/kept", "hf") == "hf://buckets/me/kept"


def test_words_that_a_file_would_not_keep() -> None:
    printable(["it's", "a b", "$HOME", "größe"])
    with pytest.raises(MpaError, match="control character"):
        printable(["a\rb"])
