"""An arm64 device for tests: Debian's programs for arm64 under qemu-user, behind a real OpenSSH server on loopback."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.peers import ROOT, SshPeer, sshd

MAKE_S = 1200
ENTER = """#!/bin/sh
exec {enter} {folder} "${{SSH_ORIGINAL_COMMAND:-exec sh}}"
"""


def userland() -> Path:
    """The folder that .ci/arm64 makes, minutes of work where .ci/peers has not been run; holds `enter`."""
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([ROOT / ".ci" / "arm64"], env=env, capture_output=True, text=True, timeout=MAKE_S)
    assert done.returncode == 0, done.stderr[-2000:]
    return Path(done.stdout.strip())


@contextmanager
def arm64_device(folder: Path) -> Iterator[SshPeer]:
    """A device whose shell, python3 and tools are arm64 programs; `folder`/device keeps its /root and /tmp.

    Every command of a client is led into the userland, so sftp, forwarding's `cat` and detached jobs run there too.
    """
    with sshd(folder) as peer:
        script = folder / "enter"
        script.write_text(
            ENTER.format(enter=shlex.quote(f"{userland()}/enter"), folder=shlex.quote(f"{folder}/device"))
        )
        script.chmod(0o755)
        keys = folder / "authorized_keys"
        keys.write_text(f'command="{shlex.quote(str(script))}" {keys.read_text()}')
        yield peer
