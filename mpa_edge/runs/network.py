"""What the environment says about the network: keys, proxies, certificates. A value that cannot work is named at once.

The HTTP libraries fail late and with other words: an illegal header is quoted with the key in it, a missing certificate
file is `No such file` without its name, and a proxy is asked for this machine too.
"""

from __future__ import annotations

import errno
import os
import ssl
import unicodedata
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from mpa_edge.errors import MachineError, MpaError

HUB_TOKEN = "HF_TOKEN"
HUB = "https://huggingface.co"
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def secret_from(name: str) -> str | None:
    """The key or token in a variable without white space around it; None where there is none.

    Raises MpaError, without the value, where it holds what no HTTP header can carry.
    """
    value = os.environ.get(name, "").strip()
    for number, char in enumerate(value, start=1):
        if not " " <= char <= "~":
            what = unicodedata.name(char, "a control character").lower()
            raise MpaError(
                f"{name} cannot be sent: its character {number} is U+{ord(char):04X} ({what}); copy the key again, "
                f"as plain text on one line"
            )
    return value or None


def is_this_machine(host: str) -> bool:
    """Whether a host name or address stays on this machine.

    >>> [is_this_machine(host) for host in ("127.9.9.9", "::1", "::ffff:127.0.0.1", "localhost", "10.0.0.1", "a.b")]
    [True, True, True, True, False, False]
    """
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower().rstrip(".").rpartition(".")[2] == "localhost"
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


@dataclass(frozen=True)
class Proxy:
    """The proxy that requests to a server go through."""

    variable: str
    """Of the environment, that names it."""
    url: str
    """Its address; may hold a user and a password."""

    def __str__(self) -> str:
        """For messages: the variable and the address without user and password."""
        url = urlsplit(self.url)
        return f"the proxy of {self.variable} ({url.scheme}://{url.netloc.rpartition('@')[2]})"


def proxy_for(url: str) -> Proxy | None:
    """The proxy for an address, as the environment says; None for this machine, whatever it says.

    Raises MpaError that names the variable where it holds no address of a proxy.
    """
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    found = getproxies_environment()
    chosen = found.get(scheme) or found.get("all")
    if not chosen or is_this_machine(host) or proxy_bypass(host):
        return None
    names = (f"{scheme}_proxy", "all_proxy")
    variable = next(name for name, value in os.environ.items() if name.lower() in names and value == chosen)
    address = chosen.strip() if "://" in chosen else f"http://{chosen.strip()}"
    try:
        parts = urlsplit(address)
        valid = parts.scheme in PROXY_SCHEMES and parts.hostname and parts.port != 0 and address.isprintable()
    except ValueError:  # a port that is no number, a bracket that is not closed
        valid = False
    if not valid:
        raise MpaError(
            f"{variable} is no address of a proxy: write http://HOST:PORT or socks5://HOST:PORT, or unset it"
        )
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise MachineError(
            f"{variable} names a SOCKS proxy, and socksio is missing: pip install socksio, or unset {variable}"
        )
    return Proxy(variable, address)


def certificates() -> ssl.SSLContext | None:
    """The certificates that SSL_CERT_FILE or SSL_CERT_DIR name; None where neither is set.

    Raises MpaError that names the variable where they cannot be read.
    """
    file, folder = (os.environ.get(name) for name in CERTIFICATES)
    name, value = (CERTIFICATES[0], file) if file else (CERTIFICATES[1], folder)
    if not value:
        return None
    try:
        if not file and not Path(value).is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "no such folder")
        return ssl.create_default_context(cafile=file or None, capath=None if file else folder)
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        why = getattr(error, "strerror", None) or error
        raise MpaError(f"{name} is {value!r}, which cannot be used ({why}): correct or unset {name}") from None


def check_hub() -> None:
    """Raise MpaError that names the variable where the hub's client could not work with what the environment says."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return
    secret_from(HUB_TOKEN)
    proxy_for(os.environ.get("HF_ENDPOINT") or HUB)
    certificates()
