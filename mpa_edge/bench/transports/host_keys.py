"""A host key that OpenSSH refuses: its fingerprint, and the command that would add it."""

from __future__ import annotations

import re
import shlex

from mpa_edge.bench.transports.process import TooSlowError, call
from mpa_edge.errors import MpaError

SCAN_S = 10
KIND = re.compile(r"(?:No|for the) (\S+) (?:host )?key (?:is known|sent)")


def host_key_error(host: str, options: list[str], complaint: str) -> MpaError:
    """What to say about a key that is unknown, or not the one that is known.

    The command adds the very key whose fingerprint is shown, so that what was compared is what is trusted.
    """
    settings = _settings(host, options)
    changed = "HAS CHANGED" in complaint
    file = (settings.get("userknownhostsfile") or "~/.ssh/known_hosts").split()[0]
    line = _scan(settings, _kind(complaint))
    if not line:
        return MpaError(
            f"the host key of {host} is {'not the known one' if changed else 'unknown'} and cannot be asked for: "
            f"compare and accept it by hand with ssh {shlex.quote(host)}"
        )
    shown, add = _fingerprint(line), f"echo {shlex.quote(line)} >> {_path(file)}"
    if changed:
        forget = f"ssh-keygen -R {shlex.quote(line.split()[0])} -f {_path(file)}"
        return MpaError(
            f"the host key of {host} has CHANGED to {shown}; if that is the device's own and not somebody between: "
            f"{forget} && {add}"
        )
    return MpaError(f"the host key of {host} is unknown: {shown}; if that is the device's own: {add}")


def _path(file: str) -> str:
    # a shell expands ~ only where it is not quoted
    return f"~/{shlex.quote(file[2:])}" if file.startswith("~/") else shlex.quote(file)


def _kind(complaint: str) -> str:
    found = KIND.search(complaint)
    return found[1].lower() if found and re.fullmatch(r"[A-Za-z0-9]+", found[1]) else "ed25519"


def _settings(host: str, options: list[str]) -> dict[str, str]:
    """What OpenSSH makes of the host: hostname, port, files."""
    done = call(["ssh", "-G", *options, "--", host], timeout_s=SCAN_S)
    pairs = (line.partition(" ") for line in done.stdout.decode(errors="replace").splitlines())
    return {key: value for key, _, value in pairs}


def _scan(settings: dict[str, str], kind: str) -> str:
    """The line of known_hosts for the key that is shown there now; empty where none answers."""
    name, port = settings.get("hostname", ""), settings.get("port", "22")
    if not name or settings.get("proxyjump", "none") != "none" or settings.get("proxycommand", "none") != "none":
        return ""
    try:
        done = call(["ssh-keyscan", "-T", "5", "-t", kind, "-p", port, "--", name], timeout_s=SCAN_S)
    except (TooSlowError, FileNotFoundError):
        return ""
    lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line and not line.startswith("#")]
    if not lines:
        return ""
    alias = settings.get("hostkeyalias", "none")
    return lines[0] if alias == "none" else f"{alias} {lines[0].partition(' ')[2]}"


def _fingerprint(line: str) -> str:
    """`ED25519 SHA256:…`, as OpenSSH shows it."""
    done = call(["ssh-keygen", "-l", "-f", "-"], timeout_s=SCAN_S, stdin=f"{line}\n".encode())
    words = done.stdout.decode(errors="replace").split()
    return f"{words[-1].strip('()')} {words[1]}" if len(words) > 2 else "a key that ssh-keygen cannot read"
