"""A llama-server on the device: started as a detached job, reached through a forwarded port, watched, stopped."""

from __future__ import annotations

import random
import re
import secrets
import shlex
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from mpa_edge.artifact import Artifact
from mpa_edge.bench.device.memory import PeakMemory, kib_fields
from mpa_edge.bench.device.protocol import ERRORS, parse_cores
from mpa_edge.bench.host.job import Job
from mpa_edge.bench.transports.process import LinkError, patiently
from mpa_edge.bench.transports.transport import Transport, enter_below, last_line, printable, quoted_path
from mpa_edge.errors import MpaError
from mpa_edge.vlm.llama_cpp.offload import PLACED, Device, Offload, Placement, placement, server_options
from mpa_edge.vlm.llama_cpp.server import LlamaServer, LlamaServerVLM, ServerGoneError

SHORT_S = 30.0
POLL_S, LOOK_S, WATCH_EVERY_S = 0.05, 1.0, 3.0
# below the range that systems assign by themselves
PORTS = (20_000, 30_000)
# ticks of /proc/PID/stat: 100 on every Linux since 2.6 (USER_HZ)
TICKS_PER_S = 100
# it may compile shaders
LIST_S = 120.0
# the batch sizes of vlm.llama_cpp.language
BATCH_TOKENS, COMPUTED_TOKENS, MAX_IMAGE_TOKENS = 512, 256, 65_536
PID = "server.pid"
# the folder of a server below its root, as we name it
FOLDER = re.compile(r"server-[0-9a-f]{16}")
# $p: the process that a server's folder names, else nothing
READ_PID = f"p=; read -r p <{PID}; case $p in 0* | 1 | *[!0-9]*) p= ;; esac"


class ServerEndedError(MpaError):
    """The server is not running any more."""

    def __init__(self, name: str, message: str) -> None:
        """`name` of the transport; `message`: the last line of the server's log."""
        super().__init__(f"llama-server on {name} ended ({message}): rerun to resume")
        self.message = message


def cpu_mask(cores: str) -> str:
    """Cores in taskset's notation -> the hexadecimal mask of `--cpu-mask`.

    >>> cpu_mask("4-7"), cpu_mask("0,9")
    ('F0', '201')
    """
    return f"{sum(1 << core for core in parse_cores(cores)):X}"


def usable_cores(transport: Transport, cores: str | None) -> int | None:
    """How many cores a server may use there; None where the device does not report it.

    MpaError where the device lacks some of `cores`; one without taskset is trusted to have them.
    """
    command = "cat /proc/self/status"
    if cores:
        command = f"command -v taskset >/dev/null 2>&1 || exit 0; taskset {cpu_mask(cores)} true || {command}"
    status = transport.run(command, timeout_s=SHORT_S).stdout.decode("utf-8", "replace")
    allowed = allowed_cores(status.splitlines())
    if cores and status:
        raise MpaError(
            f"cores {cores} are not available here, only {allowed or 'others'}: change cpu.cores of the target"
        )
    listed = cores or allowed
    return len(parse_cores(listed)) if listed else None


def allowed_cores(status: Iterable[str]) -> str:
    """Cpus_allowed_list of /proc/PID/status; empty where it is not there, or no list of cores.

    >>> allowed_cores(["Name:\tsh", "Cpus_allowed_list:\t0-3"])
    '0-3'
    """
    rows = dict(row.split(":", 1) for row in status if ":" in row)
    with suppress(MpaError):
        parse_cores(found := rows.get("Cpus_allowed_list", "").strip())
        return found
    return ""


def free_port(transport: Transport) -> int:
    """A port of the device that nobody listens on, as far as its /proc shows. MpaError where there is none."""
    table = transport.run("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null", timeout_s=SHORT_S).stdout.decode(
        errors="replace"
    )
    sockets = [row.split() for row in table.splitlines()]
    taken = {row[1].rpartition(":")[2].upper() for row in sockets if row[3:4] == ["0A"]}  # LISTEN
    free = [port for port in range(*PORTS) if f"{port:04X}" not in taken]
    if not free:
        raise MpaError(f"{transport.name} has no free port for llama-server: end what listens there, then rerun")
    return random.choice(free)


class RemoteServer:
    """One running llama-server. `vlm` answers through it."""

    vlm: LlamaServerVLM

    def __init__(
        self,
        transport: Transport,
        artifact: Artifact,
        *,
        program: str,
        model_folder: str,
        threads: int | None,
        cores: str | None,
        root: str,
        timeout_s: float,
        offload: Offload,
        slots: int = 1,
    ) -> None:
        """Start it and wait until it is ready. MpaError where it does not come up in `timeout_s`.

        program, model_folder: its path and the model's folder on the device; root: folder there for its own folder.
        threads: CPU threads, None: the server's own choice. cores: to pin to, in taskset's notation.
        offload: the device that computes, and what of the model is placed there.
        slots: questions at once, each with the whole context.
        """
        self.transport, self.artifact, self.program, self.timeout_s = transport, artifact, program, timeout_s
        self.offload, self.slots, self.url = offload, slots, ""
        self.memory, self.cores, self.load_s = PeakMemory(), list[int](), 0.0
        self._looked, self._since_boot_s = 0.0, 0.0
        self._way = ExitStack()
        self.port, self.alias = free_port(transport), f"mpa-edge-{secrets.token_hex(8)}"
        self._root, self._name = root, f"server-{self.alias[-16:]}"
        self.folder = f"{root}/{self._name}"
        self.job = Job(transport, self.folder)
        try:
            self.job.start(self._script(model_folder, threads, cores))
            self.connect()
        except ServerEndedError as error:
            self.stop()
            raise MpaError(
                f"llama-server on {transport.name} does not start ({error.message}): "
                f"try {program} --version there, and see docs/llama-server.md"
            ) from error
        except BaseException:
            self.stop()
            raise

    def _script(self, model_folder: str, threads: int | None, cores: str | None) -> str:
        """The job's command: the server replaces its shell, so that its process id is known.

        The server caches nothing between answers and adjusts nothing by itself; its port is open on the device only.
        `--cpu-mask` pins only the threads of the language model; taskset, where the device has it, pins all of them.
        """
        model, projector = (f"{model_folder}/{self.artifact.files[name]}" for name in ("language", "mmproj"))
        words = [self.program, "-m", model, "--mmproj", projector, "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--alias", self.alias, "-np", str(self.slots)]
        words += ["-c", str(self.slots * self.artifact.context_tokens), "-b", str(BATCH_TOKENS)]
        words += ["-ub", str(COMPUTED_TOKENS), "--no-warmup", "--cache-ram", "0", "--fit", "off"]
        words += server_options(self.offload)
        if threads:
            words += ["-t", str(threads)]
        if str(self.artifact.image["kind"]).startswith("qwen"):  # the image has its final size already
            words += ["--image-min-tokens", "1", "--image-max-tokens", str(MAX_IMAGE_TOKENS)]
        lines = [f"echo $$ >{shlex.quote(f'{self.folder}/{PID}')}", "pin="]
        if cores:
            words += ["--cpu-mask", cpu_mask(cores)]
            lines.append(f'command -v taskset >/dev/null 2>&1 && pin="taskset {cpu_mask(cores)}"')
        return "\n".join([*lines, f"exec $pin {shlex.join(words)}"])

    def connect(self) -> None:
        """Connect to it, again where the link broke, and wait until it is ready. ServerEndedError where it is gone."""
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            self.disconnect()
            local = patiently(
                lambda: self._way.enter_context(self.transport.forward(self.port)),
                patience_s=self.transport.patience_s,
            )
            self.url = f"http://127.0.0.1:{local}"
            with suppress(ServerGoneError):
                if self._becomes_ready(self.url):
                    self.vlm = self.client()
                    return
            self.require_alive()
        raise MpaError(f"llama-server on {self.transport.name} loads for {self.timeout_s:g} s: use a smaller model")

    def client(self) -> LlamaServerVLM:
        """Something that answers through it, over a connection of its own."""
        name = f"{self.transport.name} llama-server"
        return LlamaServerVLM(self.url, self.artifact, name=name, timeout_s=self.timeout_s, alias=self.alias)

    def _becomes_ready(self, url: str) -> bool:
        """Whether it gets ready within LOOK_S. The first time, sets `load_s` by the device's clock."""
        http, until = LlamaServer(url, timeout_s=SHORT_S), time.monotonic() + LOOK_S
        while True:
            with suppress(ServerGoneError):  # it opens its port late, and until then the forwarded port answers for it
                if http.ready(timeout_s=LOOK_S):
                    break
            if time.monotonic() > until:
                return False
            time.sleep(POLL_S)
        if not self.load_s:
            ready_at = time.monotonic()
            age_s = self.look()
            asked_at = (ready_at + time.monotonic()) / 2
            self.load_s = max(1 / TICKS_PER_S, age_s - (asked_at - ready_at))
        return True

    def disconnect(self) -> None:
        """Close the connection; the server stays."""
        if hasattr(self, "vlm"):
            self.vlm.close()
        way, self._way = self._way, ExitStack()
        with suppress(MpaError):
            way.close()

    def require_alive(self) -> None:
        """ServerEndedError, with the last line of its log, where it is not running any more."""
        if self.job.state() != "running":
            raise ServerEndedError(self.transport.name, last_line(self.job.errors()))

    def look(self) -> float:
        """Sample its memory and cores; returns the age of its process in seconds. ServerEndedError where it is gone."""
        read = f"cd {quoted_path(self.folder)} && {{ {READ_PID}; }} && cat /proc/uptime"
        text = self._run(f'{read} && cat "/proc/${{p:-none}}/stat" "/proc/$p/status" || echo gone')
        if not text or text.splitlines()[-1] == "gone":
            raise ServerEndedError(self.transport.name, "its process is gone")
        try:
            uptime, stat, *status = text.splitlines()
            uptime_s = float(uptime.split()[0])
            # the name in brackets may hold blanks; the start time is field 22, the 20th after it
            age_s = uptime_s - int(stat.rpartition(")")[2].split()[19]) / TICKS_PER_S
        except (ValueError, IndexError) as error:
            raise MpaError(
                f"{self.transport.name} says nothing usable in /proc of llama-server: use Python there, with --python"
            ) from error
        self.memory.add(kib_fields(status))
        allowed = allowed_cores(status)
        self.cores = sorted(parse_cores(allowed)) if allowed else []
        self._looked, self._since_boot_s = time.monotonic(), uptime_s - time.monotonic()
        return age_s

    def watch(self) -> None:
        """Take a sample if the last one is some seconds old: the system may swap it out and keep no peak of that."""
        if time.monotonic() > self._looked + WATCH_EVERY_S:
            self.look()

    def uptime_s(self) -> float:
        """The device's clock since boot, computed from this machine's clock and the last sample."""
        return round(time.monotonic() + self._since_boot_s, 2)

    def _run(self, command: str) -> str:
        return self.transport.run(command, timeout_s=SHORT_S).stdout.decode("utf-8", "replace")

    def placement(self) -> Placement:
        """Where its log says that the model is."""
        log = quoted_path(f"{self.folder}/{ERRORS}")
        return placement(self._run(f"grep -E {shlex.quote(PLACED.pattern)} {log} | head -n 200").splitlines())

    def stop(self) -> None:
        """Stop it and remove its folder; on a device out of reach, `stop_leftovers` does it later."""
        self.disconnect()
        with suppress(LinkError):
            remove(self.transport, self._root, self._name, patient=False)


def remove(transport: Transport, root: str, name: str, *, patient: bool = True) -> None:
    """Stop the server of the folder `name` below `root`, and remove the folder. ValueError where it is not ours."""
    if not FOLDER.fullmatch(name):
        raise ValueError(name)
    # job.sh marked what it started: a number that another process has got since is not taken for it
    ours = f'grep -qF "MPA_EDGE_JOB=("{quoted_path(f"{root}/{name}")}")" "/proc/$p/environ"'
    # it has nothing to save, and job.sh takes its time, while there is a server for each block of questions
    wait = 'for i in 1 2 3 4 5 6 7 8 9; do kill -0 "$p" || exit; sleep 0.1; done; kill -KILL "$p"'
    end = f'({READ_PID}; [ -n "$p" ] && {ours} && kill "$p" && {{ {wait}; }}) 2>/dev/null'
    stop = f"[ ! -f job.sh ] || sh job.sh stop {quoted_path(f'{root}/{name}')}"
    script = f'{enter_below(transport.root, f"{root}/{name}")}; {end}; {stop}; cd / && rm -rf "$here"'
    transport.run(script, timeout_s=2 * SHORT_S, patient=patient)


def stop_leftovers(transport: Transport, root: str) -> None:
    """Stop the servers that a killed client left behind below `root`: only in folders with a name of ours."""
    listed = transport.run(f"ls -1 {quoted_path(root)} 2>/dev/null", timeout_s=SHORT_S).stdout.decode(errors="replace")
    for name in filter(FOLDER.fullmatch, listed.splitlines()):
        remove(transport, root, name)


def server_devices(transport: Transport, program: str) -> list[Device]:
    """The devices besides the CPU that a llama-server there finds. Empty where it is too old to say."""
    command = f"{shlex.quote(program)} --list-devices 2>/dev/null"
    return listed_devices(transport.run(command, timeout_s=LIST_S).stdout.decode("utf-8", "replace"))


def listed_devices(text: str) -> list[Device]:
    r"""The devices in the output of `llama-server --list-devices`.

    >>> listed_devices("Available devices:\n  CUDA0: Orin (62841 MiB, 51325 MiB free)\n")
    [Device(name='CUDA0', description='Orin', handle=None)]
    >>> listed_devices("Available devices:\n  (none)\n"), listed_devices("no such option")
    ([], [])
    """
    rest = text.partition("Available devices:\n")[2]
    lines = [line.strip().partition(": ") for line in rest.splitlines() if ": " in line]
    return [Device(printable(name)[:40], printable(what.rpartition(" (")[0])[:200]) for name, _, what in lines]
