"""--via: what is taken, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpa_edge.bench.transports.adb import only_device
from mpa_edge.bench.transports.connect import connect, login_of
from mpa_edge.bench.transports.process import Done
from mpa_edge.bench.transports.ssh import Login
from mpa_edge.errors import MpaError


@pytest.mark.parametrize("via", [None, "local", "local://"])
def test_this_machine(via: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MPA_EDGE_BENCH_ROOT", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    way = connect(via)
    assert (way.name, way.root) == ("local", f"{tmp_path}/.cache/mpa-edge/bench")
    with way.forward(8080) as port:
        assert port == 8080
    way.close()
    way.close()


def test_the_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPA_EDGE_BENCH_ROOT", "/of/environment")
    assert connect("local").root == "/of/environment"
    assert connect("local", root="/of/argument").root == "/of/argument"


@pytest.mark.parametrize(
    ("rest", "login"),
    [
        ("user@orin", Login("orin", "user")),
        ("orin", Login("orin")),
        ("a.b-c@10.0.0.7:22/", Login("10.0.0.7", "a.b-c", 22)),
        ("u@[fe80::1%eth0]:2222", Login("fe80::1%eth0", "u", 2222)),
    ],
)
def test_logins(rest: str, login: Login) -> None:
    assert login_of(rest) == login


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "-oProxyCommand=touch x",
        "a b",
        "a;b",
        "a\nb",
        "$(x)",
        "u@-x",
        "-u@x",
        "a/b",
        "a:0",
        "a:99999",
        "a:1:2",
        "'a'",
        "ü",
        "a\0",
    ],
)
def test_hosts_that_could_be_something_else_are_refused(rest: str) -> None:
    with pytest.raises(MpaError, match="names no host: write") as caught:
        connect(f"ssh://{rest}")
    assert str(caught.value).isprintable()


@given(st.text(max_size=30))
def test_what_is_taken_is_harmless(rest: str) -> None:
    try:
        login = login_of(rest)
    except MpaError:
        return
    for word in filter(None, (login.host, login.user)):
        assert not word.startswith("-")
        assert not set(word) & set(" \t\n\r;'\"$`\\|&<>*?!#~(){}@/\0")


@pytest.mark.parametrize("via", ["ssh://user:hunter2@orin", "ssh://:hunter2@orin", "ftp://user:hunter2@orin"])
def test_passwords_are_refused_and_never_shown(via: str) -> None:
    with pytest.raises(MpaError) as caught:
        connect(via)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("via", ["orin", "http://orin", "local://x", "adb", "SSH://orin", "://"])
def test_other_ways_are_refused(via: str) -> None:
    with pytest.raises(MpaError, match="local, ssh://USER@HOST|names no|adb"):
        connect(via) if via != "adb" else connect("adbx://")


@pytest.mark.parametrize("serial", ["-H evil", "a b", "a;b", "a\nb", "$(x)"])
def test_serials_that_could_be_something_else_are_refused(serial: str) -> None:
    with pytest.raises(MpaError, match="names no device: write adb://SERIAL"):
        connect(f"adb://{serial}")


@pytest.mark.parametrize("root", ["relative", "", "/a\0b"])
def test_roots_are_absolute(root: str) -> None:
    with pytest.raises(MpaError, match="must be absolute"):
        connect("local", root=root)


@pytest.mark.parametrize(("via", "says"), [("ssh://orin", "ssh is missing"), ("adb://", "adb is missing")])
def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, via: str, says: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MpaError, match=f"{says}: install .*apt install"):
        connect(via)


HEAD = "List of devices attached\n"


@pytest.mark.parametrize(
    ("text", "serial", "says"),
    [
        (HEAD, None, "no device: plug it in"),
        (f"{HEAD}A\tdevice\nB\tdevice\n", None, r"several devices \(A, B\): name one"),
        (f"{HEAD}A\tdevice\n", "B", r"no device B \(A\)"),
        (HEAD, "B", "none at all"),
        (f"{HEAD}A\tunauthorized\n", None, r"A is not ready \(unauthorized\)"),
        (f"{HEAD}A\tunauthorized\nB\tdevice\n", "A", "confirm on its screen"),
        (
            f"{HEAD}A\tno permissions (user in plugdev?); see [http://x]\n",
            None,
            r"A is not ready \(no permissions .*: .* install the udev rules",
        ),
    ],
)
def test_devices_that_cannot_be_used(text: str, serial: str | None, says: str) -> None:
    with pytest.raises(MpaError, match=says):
        only_device(Done(0, text.encode(), b""), serial)


def test_the_device_that_is_there() -> None:
    text = f"{HEAD}A\tdevice\nB\tunauthorized\n".encode()
    assert only_device(Done(0, text, b""), "A") == "A"
    started = "* daemon not running; starting now at tcp:5037\n* daemon started successfully\n"
    assert only_device(Done(0, f"{started}{HEAD}Z\tdevice\n\n".encode(), b""), None) == "Z"
