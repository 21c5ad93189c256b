"""A llama-server on the device: started as a detached job, reached through a forwarded port, watched, stopped."""

from __future__ import annotations

import functools
import random
import secrets
import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from mpa_edge.artifact import Artifact
from mpa_edge.bench.device.memory import held_now, kib_fields
from mpa_edge.bench.device.worker import parse_cores
from mpa_edge.bench.host.job import Job
from mpa_edge.bench.transports import Done, LinkError, Transport
from mpa_edge.bench.transports.patience import patiently
from mpa_edge.errors import MpaError
from mpa_edge.vlm.llama_cpp.server import LlamaServer, LlamaServerVLM, ServerGoneError, WrongServerError

SHORT_S = 30.0
POLL_S, LOOK_S, WATCH_EVERY_S = 0.05, 1.0, 3.0
# below those that systems give away by themselves
PORTS = (20_000, 30_000)
MOST_PORTS = 3
# ticks of /proc/PID/stat: 100 on every Linux since 2.6 (USER_HZ)
TICKS_PER_S = 100
# as many as vlm.llama_cpp.language reads and computes at once, and without flash attention, as there
BATCH_TOKENS, COMPUTED_TOKENS, MOST_IMAGE_TOKENS = 512, 256, 65_536
PID, LOG = "server.pid", "err.txt"


class ServerEndedError(MpaError):
    """The server is not there any more."""

    def __init__(self, name: str, said: str) -> None:
        """`name` of the transport; `said`: its last words."""
        super().__init__(f"llama-server on {name} ended ({said}): run the same command again to go on")
        self.said = said


@dataclass(frozen=True)
class Launch:
    """What a llama-server is started with."""

    program: str
    """Its path on the device."""
    folder: str
    """The model's folder there."""
    artifact: Artifact
    """What lies in it."""
    threads: int | None
    """CPU threads; None where nobody says and the device hides its cores: the server's own choice."""
    cores: str | None
    """Cores to pin to, as taskset writes them."""


@dataclass(frozen=True)
class Look:
    """What /proc said about the server."""

    uptime_s: float
    """Since boot."""
    age_s: float
    """Since the server's process began."""
    hwm_bytes: int | None
    """Largest resident memory so far; None where the system hides it."""
    held_bytes: int
    """Resident and swapped out, now."""
    cores: tuple[int, ...]
    """Where it may run; empty where the system hides it."""


def cpu_mask(cores: str) -> str:
    """Cores as taskset writes them -> the hexadecimal mask of `--cpu-mask`.

    >>> cpu_mask("4-7"), cpu_mask("0,9")
    ('F0', '201')
    """
    return f"{sum(1 << core for core in parse_cores(cores)):X}"


def arguments(launch: Launch, port: int, alias: str) -> list[str]:
    """The command line behind the program's name.

    Nothing is kept between answers and nothing is adjusted by itself; the port is open on the device alone.
    """
    files, config = launch.artifact.files, launch.artifact.image
    words = ["-m", f"{launch.folder}/{files['language']}", "--mmproj", f"{launch.folder}/{files['mmproj']}"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--alias", alias]
    words += ["-c", str(launch.artifact.context_tokens), "-np", "1", "-b", str(BATCH_TOKENS)]
    words += ["-ub", str(COMPUTED_TOKENS), "-fa", "off", "--no-warmup", "--cache-ram", "0", "--fit", "off"]
    if launch.threads:
        words += ["-t", str(launch.threads)]
    if launch.cores:
        words += ["--cpu-mask", cpu_mask(launch.cores)]
    if str(config["kind"]).startswith("qwen"):  # the picture has its size already
        words += ["--image-min-tokens", "1", "--image-max-tokens", str(MOST_IMAGE_TOKENS)]
    return words


def script(launch: Launch, port: int, alias: str, folder: str) -> str:
    """What the job runs: the server in the place of its shell, so that its process id is known.

    `--cpu-mask` pins the threads of the language model only; taskset, where the device has it, pins all of them.
    """
    words = shlex.join([launch.program, *arguments(launch, port, alias)])
    lines = [f"echo $$ >{shlex.quote(f'{folder}/{PID}')}", "pin="]
    if launch.cores:
        mask = cpu_mask(launch.cores)
        lines.append(f'command -v taskset >/dev/null 2>&1 && pin="taskset {mask}"')
    return "\n".join([*lines, f"exec $pin {words}"])


def require_cores(transport: Transport, cores: str) -> None:
    """MpaError where the device does not have them; a device without taskset is believed."""
    command = f"command -v taskset >/dev/null 2>&1 || exit 0; taskset {cpu_mask(cores)} true || cat /proc/self/status"
    said = patiently(lambda: transport.run(command, timeout_s=SHORT_S)).stdout.decode("utf-8", "replace")
    if said:
        have = status_word(said.splitlines(), "Cpus_allowed_list") or "others"
        raise MpaError(f"cores {cores} cannot be used here, only {have}: change cpu.cores of the target")


def usable_cores(transport: Transport, cores: str | None) -> int | None:
    """How many cores a server may use there; None where the device does not say."""
    if cores is None:
        done = patiently(lambda: transport.run("cat /proc/self/status", timeout_s=SHORT_S))
        cores = status_word(done.stdout.decode("utf-8", "replace").splitlines(), "Cpus_allowed_list")
    return len(parse_cores(cores)) if cores else None


def status_word(rows: Iterable[str], name: str) -> str:
    """A field of /proc/PID/status as text; empty where it is not there.

    >>> status_word(["Name:\tsh", "Cpus_allowed_list:\t0-3"], "Cpus_allowed_list")
    '0-3'
    """
    found = dict(row.split(":", 1) for row in rows if ":" in row)
    return found.get(name, "").strip()


def random_ports() -> Iterator[int]:
    """Ports to try."""
    while True:
        yield random.randrange(*PORTS)


class RemoteServer:
    """One running llama-server. `vlm` answers through it."""

    vlm: LlamaServerVLM

    def __init__(
        self, transport: Transport, launch: Launch, root: str, *, timeout_s: float, ports: Iterator[int] | None = None
    ) -> None:
        """Start it below `root` and wait until it is ready. MpaError where it does not come up in `timeout_s`."""
        self.transport, self.launch, self.timeout_s = transport, launch, timeout_s
        self.held_bytes, self.load_s = 0, 0.0
        self._looked, self._since_boot_s = 0.0, 0.0
        self.cores: list[int] = []
        self.hwm_bytes: int | None = None
        self._way = ExitStack()
        ports = ports or random_ports()
        for _ in range(MOST_PORTS):
            self.port, self.alias = next(ports), f"mpa-edge-{secrets.token_hex(8)}"
            self.folder = f"{root}/server-{self.alias[-16:]}"
            self.job = Job(transport, self.folder)
            if self._start():
                return
            self.stop()
        raise MpaError(f"{transport.name} has no free port for llama-server: end what listens there, and try again")

    def _start(self) -> bool:
        """Whether it is ready; not so where another program has the port."""
        try:
            self.job.start(script(self.launch, self.port, self.alias, self.folder))
            self.connect()
        except WrongServerError:
            return False
        except ServerEndedError as error:
            if "bind" in self._log():
                return False
            self.stop()
            raise MpaError(
                f"llama-server on {self.transport.name} does not start ({error.said}): "
                f"try {self.launch.program} --version there, and see docs/llama-server.md"
            ) from error
        except BaseException:
            self.stop()
            raise
        return True

    def connect(self) -> None:
        """Open the way to it, again where it broke, and wait until it is ready. ServerEndedError where it is gone."""
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            self.disconnect()
            local = patiently(lambda: self._way.enter_context(self.transport.forward(self.port)))
            with suppress(ServerGoneError):
                if self._is_ready(f"http://127.0.0.1:{local}"):
                    return
            self.require_alive()
        raise MpaError(f"llama-server on {self.transport.name} loads for {self.timeout_s:g} s: use a smaller model")

    def disconnect(self) -> None:
        """Close the way; the server stays."""
        if hasattr(self, "vlm"):
            self.vlm.close()
        way, self._way = self._way, ExitStack()
        with suppress(MpaError):
            way.close()

    def _is_ready(self, url: str) -> bool:
        """Whether it gets ready while one looks; then `vlm` answers."""
        http, until = LlamaServer(url, timeout_s=SHORT_S), time.monotonic() + LOOK_S
        while not self._says_so(http):
            if time.monotonic() > until:
                return False
            time.sleep(POLL_S)
        self.load_s = self.load_s or self._loaded_in(time.monotonic())
        name = f"{self.transport.name} llama-server"
        self.vlm = LlamaServerVLM(url, self.launch.artifact, name=name, timeout_s=self.timeout_s, alias=self.alias)
        return True

    def _says_so(self, http: LlamaServer) -> bool:
        with suppress(ServerGoneError):  # it opens its port late, and a forwarded one answers for it until then
            return http.ready(timeout_s=LOOK_S)
        return False

    def _loaded_in(self, ready_at: float) -> float:
        """Seconds from the start of its process, by the device's clock, to the moment that it was seen ready."""
        before = time.monotonic()
        age_s = self.look().age_s
        asked_at = (before + time.monotonic()) / 2
        return max(1 / TICKS_PER_S, age_s - (asked_at - ready_at))

    def require_alive(self) -> None:
        """ServerEndedError, with the last thing that it said, where it is not running any more."""
        if self.job.state() != "running":
            said = [line.strip() for line in self._log().splitlines() if line.strip()]
            raise ServerEndedError(self.transport.name, said[-1][:200] if said else "it said nothing")

    def _log(self) -> str:
        command = f"tail -c 4000 {shlex.quote(f'{self.folder}/{LOG}')}"
        return self._run(command).stdout.decode("utf-8", "replace")

    def look(self) -> Look:
        """Read its memory and age; the largest memory is kept. ServerEndedError where it is gone."""
        pid = f"$(cat {shlex.quote(f'{self.folder}/{PID}')})"
        command = f"cat /proc/uptime && cat /proc/{pid}/stat && cat /proc/{pid}/status"
        done = self._run(command)
        if done.rc:
            raise ServerEndedError(self.transport.name, "its process is gone")
        found = parse_look(done.stdout.decode("utf-8", "replace"))
        self._looked, self._since_boot_s = time.monotonic(), found.uptime_s - time.monotonic()
        self.cores, self.held_bytes = list(found.cores), max(self.held_bytes, found.held_bytes)
        self.hwm_bytes = max(self.hwm_bytes or 0, found.hwm_bytes) if found.hwm_bytes else self.hwm_bytes
        return found

    def watch(self) -> None:
        """Look where the last look was some seconds ago: the system may swap it out and keep no peak of that."""
        if time.monotonic() > self._looked + WATCH_EVERY_S:
            self.look()

    def uptime_s(self) -> float:
        """The device's clock since boot, by this machine's and the last look."""
        return round(time.monotonic() + self._since_boot_s, 2)

    def _run(self, command: str) -> Done:
        return patiently(lambda: self.transport.run(command, timeout_s=SHORT_S))

    def peak(self) -> tuple[int | None, str]:
        """Peak memory in bytes over all looks, and the method."""
        if self.hwm_bytes is None:
            return (self.held_bytes, "VmRSS + VmSwap, sampled (no VmHWM)") if self.held_bytes else (None, "hidden")
        more = self.held_bytes > self.hwm_bytes
        return max(self.hwm_bytes, self.held_bytes), "max(VmHWM, VmRSS + VmSwap)" if more else "VmHWM"

    def runtime(self) -> str:
        """The program with its version."""
        return f"llama-server {self.vlm.props.get('build_info', '(of an unknown build)')}"

    def backend(self) -> str:
        """Devices beside the CPU that this build found, as it lists them itself; all layers go to the first."""
        done = self._run(f"{shlex.quote(self.launch.program)} --list-devices 2>/dev/null")
        return parse_devices(done.stdout.decode("utf-8", "replace"))

    def stop(self) -> None:
        """End it and remove what it left; a device out of reach keeps it until `stop_leftovers`."""
        self.disconnect()
        with suppress(LinkError):
            remove(self.transport, self.folder)


def remove(transport: Transport, folder: str) -> None:
    """Stop the server of a folder, and remove the folder."""
    place = shlex.quote(folder)
    # it has nothing to save, and a job is stopped at leisure, while there is a server for each block of questions
    wait = 'for i in 1 2 3 4 5 6 7 8 9; do kill -0 "$p" || exit 0; sleep 0.1; done; kill -KILL "$p"'
    transport.run(f'read -r p <{place}/{PID} && kill "$p" && {wait}; true', timeout_s=SHORT_S)
    Job(transport, folder).stop()
    transport.run(f"rm -rf {place}", timeout_s=SHORT_S)


def stop_leftovers(transport: Transport, root: str) -> int:
    """Stop the servers that a killed client left behind below `root`; how many folders there were."""
    command = f'for d in {shlex.quote(root)}/server-*/; do [ -d "$d" ] && printf \'%s\\n\' "${{d%/}}"; done; true'
    found = patiently(lambda: transport.run(command, timeout_s=SHORT_S)).stdout.decode().splitlines()
    for folder in found:
        patiently(functools.partial(remove, transport, folder))
    return len(found)


def parse_devices(text: str) -> str:
    r"""What `llama-server --list-devices` printed, in short.

    >>> parse_devices("Available devices:\n  CUDA0: Orin (62841 MiB, 51325 MiB free)\n")
    'llama.cpp CUDA0 (Orin)'
    >>> parse_devices("Available devices:\n  (none)\n"), parse_devices("no such option")
    ('llama.cpp CPU', 'llama.cpp, unknown backend')
    """
    rest = text.partition("Available devices:\n")[2]
    lines = [line.strip().partition(": ") for line in rest.splitlines() if ": " in line]
    if not rest:
        return "llama.cpp, unknown backend"
    return "llama.cpp " + (", ".join(f"{name} ({what.rpartition(' (')[0]})" for name, _, what in lines) or "CPU")


def parse_look(text: str) -> Look:
    r"""/proc/uptime, /proc/PID/stat and /proc/PID/status in one text.

    >>> stat = "7 (a b) S " + "0 " * 18 + "1000 0"
    >>> parse_look(f"25.50 1.0\n{stat}\nName: x\nVmHWM:  8 kB\nVmRSS:  6 kB\nVmSwap:  4 kB\n")
    Look(uptime_s=25.5, age_s=15.5, hwm_bytes=8192, held_bytes=10240, cores=())
    """
    uptime, stat, *status = text.splitlines()
    fields = kib_fields(status)
    uptime_s = float(uptime.split()[0])
    # the name in brackets may hold blanks; the start time is field 22, the 20th behind it
    started_s = int(stat.rpartition(")")[2].split()[19]) / TICKS_PER_S
    listed = status_word(status, "Cpus_allowed_list")
    cores = tuple(sorted(parse_cores(listed))) if listed else ()
    return Look(uptime_s, uptime_s - started_s, fields.get("VmHWM"), held_now(fields), cores)
