"""Over how many processes training is spread: what the user asked for, and what cannot be, said before anything runs.

The configuration file is accelerate's own (`accelerate config` writes one); only what would change the result or cannot
work is looked at here, and the file itself goes to accelerate as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpa_edge.errors import MpaError
from mpa_edge.stages.level.precision import computes_in_bf16

if TYPE_CHECKING:
    from mpa_edge.config.recipe import Recipe

# the others shard one model over several GPUs, which a small one does not need
KINDS = ("NO", "MULTI_CPU", "MULTI_GPU")
MAX_CONFIG_BYTES = 1_000_000


@dataclass(frozen=True)
class Processes:
    """How training is spread. All processes together learn from `level.batch_size` samples in a step."""

    count: int
    """On all machines together."""
    config: str | None = None
    """accelerate's configuration file."""
    machines: int = 1
    """Machines that share the work; each runs the same command with its own machine_rank."""
    machine: int = 0
    """Number of this one; machine 0 writes the run folder."""
    mixed_precision: str = "no"
    """What the configuration says."""
    use_cpu: bool = False
    """What the configuration says."""

    @property
    def here(self) -> int:
        """Processes on this machine."""
        return self.count // self.machines


def processes(count: int | None, config: str | None) -> Processes | None:
    """What `--num-processes` and `--accelerate-config` ask for; None where neither does: training in this process.

    MpaError where the file cannot be used.
    """
    if config is None:
        return None if count in (None, 1) else Processes(int(count or 1))
    stored = _read(config)
    kind = str(stored.get("distributed_type", "NO")).upper()
    local = str(stored.get("compute_environment", "LOCAL_MACHINE")).upper() == "LOCAL_MACHINE"
    if kind not in KINDS or not local or (stored.get("mpirun_config") or {}).get("mpirun_hostfile"):
        raise MpaError(
            f"'{config}' asks for {kind if local else stored['compute_environment']}, and level trains one whole "
            f"student on each GPU: use distributed_type MULTI_GPU or MULTI_CPU, without mpirun"
        )
    found = Processes(
        count or _number(config, stored, "num_processes", 1),
        config,
        machines=_number(config, stored, "num_machines", 1),
        machine=_number(config, stored, "machine_rank", 0),
        mixed_precision=_precision(stored),
        use_cpu=bool(stored.get("use_cpu")),
    )
    _check_machines(found, stored)
    return found


def _read(config: str) -> Mapping[str, Any]:
    """The file as YAML, which JSON is, too."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        with Path(config).open("rb") as file:
            stored = YAML(typ="safe", pure=True).load(file.read(MAX_CONFIG_BYTES))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        why = error.strerror if isinstance(error, OSError) else "no YAML document"
        raise MpaError(f"cannot read '{config}' ({why}): let accelerate config write one") from error
    if not isinstance(stored, dict):
        raise MpaError(f"'{config}' is no configuration of accelerate: let accelerate config write one")
    return stored


def _number(config: str, stored: Mapping[str, Any], key: str, default: int) -> int:
    value = stored.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < (key != "machine_rank"):
        raise MpaError(f"'{config}': {key} is {value}: write a number of 1 or more (machine_rank begins with 0)")
    return value


def _precision(stored: Mapping[str, Any]) -> str:
    """YAML reads a bare `no` as false.

    >>> _precision({"mixed_precision": False}), _precision({"mixed_precision": "bf16"}), _precision({})
    ('no', 'bf16', 'no')
    """
    return str(stored.get("mixed_precision") or "no").lower()


def _check_machines(asked: Processes, stored: Mapping[str, Any]) -> None:
    """What accelerate would find out only after the other machines wait."""
    if asked.machine >= asked.machines:
        raise MpaError(
            f"'{asked.config}': machine_rank is {asked.machine} of {asked.machines} machines: the first one is 0"
        )
    if asked.count % asked.machines:
        raise MpaError(
            f"{asked.count} processes cannot be shared evenly by {asked.machines} machines: "
            f"use --num-processes {asked.machines * max(1, asked.count // asked.machines)}"
        )
    if asked.machines > 1 and not (stored.get("main_process_ip") and stored.get("main_process_port")):
        raise MpaError(
            f"'{asked.config}' has several machines: write main_process_ip and main_process_port of machine 0"
        )


def require_possible(asked: Processes, recipe: Recipe) -> None:
    """MpaError where this recipe cannot be trained so on this machine. Looks for GPUs, loads no model."""
    from mpa_edge.vlm.transformers.checkpoint import pick_device

    level, device = recipe.level, pick_device(recipe.device)
    if level.batch_size % asked.count:
        raise MpaError(_uneven(level.batch_size, asked.count))
    if level.quantize:
        raise MpaError("level.quantize is for one small GPU: leave --num-processes out, or --set level.quantize=null")
    if device == "cuda":
        _check_gpus(asked)
    bf16 = computes_in_bf16(level, device)
    if asked.mixed_precision not in ("no", "bf16" if bf16 else "no"):
        raise MpaError(
            f"'{asked.config}' computes in {asked.mixed_precision}, the recipe in {'bf16' if bf16 else 'fp32'}: "
            f"write mixed_precision: 'no' there, and --set level.precision=bf16 where that is wanted"
        )


def _uneven(batch_size: int, count: int) -> str:
    """The samples of a step must be the same ones, whoever computes them.

    >>> print(_uneven(32, 3))
    level.batch_size is 32, which 3 processes cannot share evenly: use --num-processes 2, or --set level.batch_size=33
    """
    fewer = max(n for n in range(1, min(count, batch_size) + 1) if batch_size % n == 0)
    more = -(-batch_size // count) * count
    return (
        f"level.batch_size is {batch_size}, which {count} processes cannot share evenly: "
        f"use --num-processes {fewer}, or --set level.batch_size={more}"
    )


def _check_gpus(asked: Processes) -> None:
    import torch

    found = torch.cuda.device_count()
    if asked.use_cpu:
        raise MpaError(f"'{asked.config}' says use_cpu, and this machine has a GPU: add --set device=cpu")
    if asked.here > found:
        raise MpaError(
            f"{asked.here} processes need a GPU each, and this machine has {found}: "
            f"use --num-processes {found * asked.machines}, or --set device=cpu"
        )
