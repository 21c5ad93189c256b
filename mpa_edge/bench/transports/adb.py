"""The connection through Android's adb program: USB, or a device that listens on the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mpa_edge.bench.transports.faults import ADB, fix_of
from mpa_edge.bench.transports.process import Done, LinkError, TooSlowError, call
from mpa_edge.bench.transports.transport import Transport, last_line, printable
from mpa_edge.errors import MpaError

ROOT = "/data/local/tmp/mpa-edge"
CONNECT_S = 15.0


class AdbTransport(Transport):
    """A device that `adb devices` shows. adb's server is left running, as adb itself does."""

    def __init__(self, serial: str | None = None, root: str | None = None) -> None:
        self.root = root or ROOT
        self._forwards: dict[int, int] = {}
        said = adb("connect", serial).stdout if serial and ":" in serial else b""
        self._serial = only_device(adb("devices"), serial, last_line(said, ""))
        self.name = f"adb {self._serial}"

    def _argv(self, command: str) -> list[str]:
        return ["adb", "-s", self._serial, "shell", "-T", command]

    def _prepare(self) -> None:
        """After a break, reconnect to a device on the network, and forward the ports again."""
        if not self._is_broken:
            return
        if ":" in self._serial:
            adb("disconnect", self._serial)
            adb("connect", self._serial)
        for host, device in self._forwards.items():
            adb("-s", self._serial, "forward", f"tcp:{host}", f"tcp:{device}")
        self._is_broken = False

    def _link_works(self) -> bool:
        return adb("-s", self._serial, "get-state").stdout.strip() == b"device"

    def _broken(self, complaint: str) -> MpaError:
        why = last_line(complaint, "the connection was cut")
        fix = fix_of(complaint, ADB, "plug it in, and check adb devices")
        return LinkError(f"device {self._serial} does not answer ({why}): {fix}")

    @contextmanager
    def forward(self, device_port: int) -> Iterator[int]:
        """A port of this machine that leads to a port of the device; it survives a reconnection."""
        self._prepare()
        done = adb("-s", self._serial, "forward", "tcp:0", f"tcp:{device_port}")
        if done.rc:
            self._is_broken = True
            raise self._broken(done.stderr.decode(errors="replace"))
        host_port = int(re.findall(rb"\d{1,5}", done.stdout)[-1])
        self._forwards[host_port] = device_port
        try:
            yield host_port
        finally:
            del self._forwards[host_port]
            with suppress(MpaError):
                adb("-s", self._serial, "forward", "--remove", f"tcp:{host_port}")


def adb(*words: str) -> Done:
    """One call of the adb program."""
    try:
        return call(["adb", *words], timeout_s=CONNECT_S)
    except FileNotFoundError as error:
        raise MpaError("adb is missing: install Android's platform tools (apt install adb)") from error
    except TooSlowError as error:
        raise LinkError(
            f"adb {words[0]} did not answer within {CONNECT_S:.0f} s: run adb kill-server, then rerun"
        ) from error


def only_device(done: Done, serial: str | None, said: str = "") -> str:
    """The serial to use, from the output of `adb devices`. MpaError unless it is there and ready, or the only one.

    said: what `adb connect` said, for a device on the network.
    """
    lines = done.stdout.decode(errors="replace").splitlines()
    # only rows have a tab; older versions also print that they start their server
    states = {printable(row[0]): row[1] for line in lines if len(row := line.split("\t")) > 1}
    if done.rc or (not states and not serial):
        raise MpaError("adb sees no device: plug it in, enable USB debugging, and check adb devices")
    if serial is None and len(states) > 1:
        raise MpaError(f"adb sees several devices ({', '.join(states)}): name one with --via adb://SERIAL")
    chosen = serial or next(iter(states))
    if chosen not in states:
        why = said or ", ".join(states) or "none at all"
        raise MpaError(f"adb sees no device {chosen} ({why}): {fix_of(why, ADB, 'check adb devices')}")
    if states[chosen] != "device":
        raise MpaError(
            f"adb device {chosen} is not ready ({printable(states[chosen])}): confirm on its screen if it asks, "
            "install the udev rules (apt install android-sdk-platform-tools-common), then plug it in again"
        )
    return chosen
