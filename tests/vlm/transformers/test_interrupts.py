"""Ctrl-C waits while a library must not be interrupted."""

from __future__ import annotations

import os
import signal

import pytest

from mpa_edge.vlm import interrupts_held


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interrupts_held():
        pass
