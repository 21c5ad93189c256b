"""What programs say when a link, a login or a device fails, and what fixes each.

OpenSSH, adb and the tools of a device all end with the same exit status whatever is wrong: only their text says what.
The locale is C on both sides, so it is always the same text.
"""

from __future__ import annotations

import re

Faults = tuple[tuple[str, str], ...]
"""Regular expression -> what fixes it; the first that is found counts."""

LINK: Faults = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "compare its key; if the device was set up anew, run ssh-keygen -R {host}",
    ),
    ("host key is known|Host key verification", "run ssh {host} by hand once, compare the fingerprint and accept it"),
    ("[Pp]assword .*expired|change your password", "log in by hand with ssh {host} and change the password"),
    ("UNPROTECTED PRIVATE KEY|bad permissions", "run chmod 600 on the key file"),
    ("Too many authentication failures", "name one key in ~/.ssh/config (IdentityFile, IdentitiesOnly yes)"),
    ("Permission denied|[Aa]uthentication fail", "install your key there with ssh-copy-id {host}, and check the user"),
    ("Could not resolve|not known|resolve", "check the name, or write its address"),
    ("Connection refused", "start its ssh server (sudo systemctl start ssh), and check the port"),
    (
        "[Nn]o route|unreachable|is down|was cut",
        "check its power and network, and that this machine is in the same network",
    ),
    ("timed? ?out", "check its power, its address and firewalls in between"),
    (
        "[Nn]o matching|Unable to negotiate",
        "allow what its old server offers in ~/.ssh/config (HostKeyAlgorithms +ssh-rsa)",
    ),
    ("onfiguration option|config.*line", "fix that line of the ssh configuration"),
    ("identification|banner|closed by|reset by", "check the port, and the server's log there: it hangs up on us"),
)
ADB: Faults = (
    ("unauthorized|failed to authenticate", "confirm the question on its screen"),
    ("offline", "plug it in again, or run adb reconnect"),
    ("refused", "enable debugging over the network (adb tcpip 5555, once over USB), and check the port"),
    (
        "[Nn]o route|unreachable|timed? ?out",
        "check its power and network, and that this machine is in the same network",
    ),
    ("resolve|not known", "check the name, or write its address"),
)
LOGIN: Faults = (
    ("open refused", "set MaxSessions in its sshd_config to 2 or more"),
    ("[Pp]assword .*expired|change your password|required to change", "log in by hand and change the password"),
    ("not available|nologin|restricted|not permitted|denied", "give its user a plain shell (chsh -s /bin/sh)"),
    ("sh: .*not found|sh: No such file|sh: not found", "install a POSIX sh there, or fix PATH in its startup files"),
)
LOGIN_ELSE = (
    "take what ends, replaces or reads from the shell out of its startup files (~/.bashrc), and ForceCommand out"
)
DEVICE: Faults = (
    ("No space left", "free space there, or choose another folder with --root"),
    ("uota exceeded", "free space within the quota of its user, or choose another folder with --root"),
    ("Read-only file system", "choose a folder that can be written to with --root"),
    ("Permission denied|not permitted", "choose a folder that its user may write to with --root"),
    (
        "File too large|[Ff]ile size limit",
        "its file system or ulimit -f takes no file of this size: choose another folder with --root",
    ),
    (
        "[Cc]annot allocate|out of memory|[Cc]an.?.?.?t fork|Resource temp",
        "end other programs, or raise ulimit",
    ),
    (
        "Input/output error|I/O error|needs cleaning",
        "its storage is damaged: check it (fsck), or use another with --root",
    ),
    ("create directory|Not a directory", "choose another folder with --root"),
    ("not found|applet", "install what is missing there (coreutils, or a complete busybox)"),
)


def fix_of(text: str, faults: Faults, otherwise: str) -> str:
    """What fixes the fault that a program reports with `text`, else `otherwise`.

    >>> fix_of("tar: x: Cannot write: No space left on device", DEVICE, "")
    'free space there, or choose another folder with --root'
    """
    return next((fix for pattern, fix in faults if re.search(pattern, text)), otherwise)
