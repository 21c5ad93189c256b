"""Keys, proxies and certificates of the environment: what cannot work is named at once, and never by its value."""

from __future__ import annotations

import ssl
import traceback
from importlib.util import find_spec
from pathlib import Path

import pytest

from mpa_edge.errors import MachineError, MpaError
from mpa_edge.questions.find import local_data
from mpa_edge.runs import network
from mpa_edge.runs.network import certificates, is_this_machine, proxy_for, secret_from
from mpa_edge.vlm.transformers.files import download

KEY = "sk-canary-0123456789"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir", "request_method")
    for name in names:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("around", ["{}\r", "{}\n", "\t{} \r\n", "\u00a0{}", "{}\u2028"])
def test_white_space_around_a_key_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch, around: str) -> None:
    monkeypatch.setenv("A_KEY", around.format(KEY))
    assert secret_from("A_KEY") == KEY
    monkeypatch.setenv("A_KEY", around.format(""))
    assert secret_from("A_KEY") is None


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        ("\u2013", r"U\+2013 \(en dash\)"),
        ("\u201d", r"U\+201D \(right double quotation mark\)"),
        ("\n", r"U\+000A \(a control character\)"),
        ("\x1b", r"U\+001B"),
        ("\u200b", r"U\+200B \(zero width space\)"),
        ("é", r"U\+00E9"),
        ("\udc80", r"U\+DC80"),
    ],
)
def test_what_no_header_carries_is_named_without_the_key(
    monkeypatch: pytest.MonkeyPatch, inside: str, named: str
) -> None:
    monkeypatch.setenv("A_KEY", f"sk{inside}canary-0123456789")
    with pytest.raises(MpaError, match=rf"^A_KEY cannot be sent: its character 3 is {named}") as caught:
        secret_from("A_KEY")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1.2.3", "localhost", "LOCALHOST.", "a.localhost", "[::1]", "0.0.0.0"]
)
def test_this_machine_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch, name: str, host: str) -> None:
    monkeypatch.setenv(name, "http://proxy:3128")
    assert proxy_for(f"http://{host}:8000/v1") is None
    assert is_this_machine(host.strip("[]"))
    found = proxy_for("http://gpu-box:8000/v1")
    assert found is not None
    assert (found.variable, found.url) == (name, "http://proxy:3128")


def test_a_proxy_is_chosen_as_the_environment_says_and_shown_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "me:p@ss@proxy:3128")
    assert proxy_for("http://gpu-box/v1") is None
    found = proxy_for("https://api.example.com/v1")
    assert found is not None
    assert (found.url, str(found)) == ("http://me:p@ss@proxy:3128", "the proxy of HTTPS_PROXY (http://proxy:3128)")
    monkeypatch.setenv("NO_PROXY", ".example.com, other")
    assert proxy_for("https://api.example.com/v1") is None
    assert proxy_for("https://example.org/v1") is not None
    monkeypatch.setenv("https_proxy", "")
    assert proxy_for("https://example.org/v1") is None


@pytest.mark.parametrize("value", ["ftp://proxy:1", "http://", "http://proxy:port", "http://[::1", "http://pro\txy:1"])
def test_an_address_that_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(MpaError, match="^ALL_PROXY is no address of a proxy: write http://HOST:PORT"):
        proxy_for("https://example.org/v1")


def test_socks_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "find_spec", lambda name: None if name == "socksio" else find_spec(name))
    monkeypatch.setenv("ALL_PROXY", "socks5h://me:pw@proxy:1080")
    with pytest.raises(MachineError, match="^ALL_PROXY names a SOCKS proxy, and socksio is missing: pip install"):
        proxy_for("https://example.org/v1")
    assert proxy_for("http://127.0.0.1/v1") is None


def test_certificates_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert certificates() is None
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for name, value in [
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
        ("SSL_CERT_FILE", str(tmp_path)),
        ("SSL_CERT_FILE", str(empty)),
        ("SSL_CERT_DIR", "/nowhere"),
    ]:
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            with pytest.raises(MpaError, match=rf"^{name} is '{value}', which cannot be used \(.*: correct or unset"):
                certificates()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert isinstance(certificates(), ssl.SSLContext)


@pytest.mark.parametrize(
    ("name", "value"),
    [("HF_TOKEN", "hf\u2013canary-0123456789"), ("SSL_CERT_FILE", "/nowhere"), ("HTTPS_PROXY", "ftp://me:canary@h:1")],
)
def test_the_hub_is_not_asked_with_what_cannot_work(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for ask in (lambda: download("owner/name"), lambda: local_data("owner/name", ["test"])):
        with pytest.raises(MpaError, match=f"^{name} ") as caught:
            ask()
        assert "canary" not in "".join(traceback.format_exception(caught.value))
