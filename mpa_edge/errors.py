"""One root for every error a user can meet. The message is one line and ends with what to do."""

from __future__ import annotations

from collections.abc import Iterable


class MpaError(Exception):
    """A user's error: printed as one line without a traceback; the process ends with `exit_code`."""

    exit_code: int = 1


class OutsideError(MpaError):
    """A name in a document leads out of the folder that it belongs to."""


class MachineError(MpaError):
    """The machine lacks memory, disk space or a package; what was being made or checked is not at fault."""


class NotFiniteError(MpaError):
    """An export computes infinite numbers, or none: in 16 bits, a number above 65,504 is infinite."""

    def __init__(self, path: object, component: str) -> None:
        """`component` (`config.scheme.Component`): the one in whose output they are first."""
        super().__init__(str(path), component)
        self.component = component

    def __str__(self) -> str:
        return f"{self.args[0]} computes values that are not numbers: export with another scheme"


class VerificationError(MpaError):
    """Something was made and then found not to be what it must be (merge, export, bench gate)."""

    exit_code: int = 3


def missing_package(package: str, extra: str) -> MachineError:
    """The error to raise when an optional package is not installed.

    >>> str(missing_package("onnxruntime", "onnx"))
    "onnxruntime is missing: pip install 'mpa-edge[onnx]'"
    """
    return MachineError(f"{package} is missing: pip install 'mpa-edge[{extra}]'")


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """How an error about an unknown name ends: with the nearest known one, else with `otherwise`.

    >>> did_you_mean("anlss", ["anls", "exact-match"], "use anls"), did_you_mean("x", ["anls"], "use anls")
    ("did you mean 'anls'?", 'use anls')
    """
    import difflib

    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean '{near[0]}'?" if near else otherwise
