"""A bundle on its way to a device: what is missing is sent, what arrived is hashed there, nothing fills the device."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpa_edge.bench.host.job import Job
from mpa_edge.bench.host.upload import PACK_BYTES, remove, send
from mpa_edge.bench.transports.connect import connect
from mpa_edge.bench.transports.process import Done, LinkError
from mpa_edge.bench.transports.transport import BLOCK_BYTES, LocalTransport, Transport
from mpa_edge.errors import MpaError
from tests.bench.peers import AdbPeer, SshPeer, adbd, program, run, sshd

pytestmark = pytest.mark.slow  # processes that are waited for, stopped and killed


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Made:
    folder: Path
    files: dict[str, str]
    sha256: str

    def send(self, transport: Transport) -> Path:
        return Path(send(transport, self.folder, self.files, self.sha256))

    def is_at(self, remote: Path) -> bool:
        found = {path: sha256((remote / path).read_bytes()) for path in self.files}
        return found == self.files and (remote / ".complete").exists()


@pytest.fixture
def made(tmp_path: Path):
    """made("name", {"path": content}) -> a bundle."""

    def make(name: str, contents: dict[str, bytes]) -> Made:
        for path, content in contents.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        files = {path: sha256(content) for path, content in contents.items()}
        return Made(tmp_path / name, files, sha256(repr(sorted(files.items())).encode()))

    return make


@pytest.fixture
def bundle(made) -> Made:
    images = {f"images/it's {n}.png": f"image {n}".encode() * n for n in range(40)}
    odd = {"-rf": b"-", "a b/$(c);`d`/'\".bin": b"odd", "ü/*": b"star", "twice": b"same", "again": b"same"}
    return made("bundle", {**images, **odd, "model.gguf": os.urandom(3 * BLOCK_BYTES + 5), "empty": b""})


class Counted(LocalTransport):
    """Says what went over the link."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.calls = 0
        self.sent_bytes = 0

    def run(self, command: str, *, stdin: bytes | None = None, **given) -> Done:
        self.calls += 1
        self.sent_bytes += len(stdin or b"")
        return super().run(command, stdin=stdin, **given)

    def push(self, source: Path, target: str, *, timeout_s: float) -> None:
        self.calls += 1
        self.sent_bytes += source.stat().st_size
        super().push(source, target, timeout_s=timeout_s)


@pytest.fixture
def device(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "it's a; root")


def test_all_arrives_and_is_not_sent_twice(device: Counted, bundle: Made) -> None:
    remote = bundle.send(device)
    assert str(remote) == f"{device.root}/{bundle.sha256}"
    assert bundle.is_at(remote)
    # many small files are one call
    assert device.calls < 15
    device.sent_bytes = 0
    assert bundle.send(device) == remote
    assert device.sent_bytes < 15_000
    store = Path(device.root, "files")
    assert sorted(os.listdir(store)) == sorted(set(bundle.files.values()))


def test_bundles_share_what_is_the_same(device: Counted, bundle: Made, made) -> None:
    bundle.send(device)
    device.sent_bytes = 0
    contents = {path: (bundle.folder / path).read_bytes() for path in bundle.files}
    other = made("other", {**contents, "order.json": b"new"})
    assert other.is_at(other.send(device))
    assert device.sent_bytes < 15_000
    assert os.path.samefile(*(f"{device.root}/{one.sha256}/model.gguf" for one in (bundle, other)))


@pytest.mark.parametrize("path", ["model.gguf", "images/it's 7.png"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "linked elsewhere"])
def test_damage_on_the_device_is_noticed_and_mended(device: Counted, bundle: Made, path: str, damage: str) -> None:
    remote = bundle.send(device)
    if damage == "changed":
        content = bytearray((remote / path).read_bytes())
        content[-1] ^= 1
        (remote / path).write_bytes(content)
    elif damage == "cut":
        os.truncate(remote / path, 3)
    else:
        (remote / path).unlink()
        if damage == "linked elsewhere":
            (remote / path).write_bytes(b"something else")
    assert bundle.is_at(bundle.send(device))


def test_a_file_that_is_not_what_it_should_be_is_never_taken(device: Counted, bundle: Made) -> None:
    (bundle.folder / "model.gguf").write_bytes(b"not what its hash says")
    with pytest.raises(MpaError, match="differs from what was sent, 3 times over: check cable and storage"):
        bundle.send(device)
    assert not Path(device.root, bundle.sha256).exists()


class Torn(Counted):
    """The link breaks in the middle of each file once, and of each call once."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.seen: set[str] = set()

    def _once(self, key: str) -> bool:
        fresh = key not in self.seen
        self.seen.add(key)
        return fresh

    def _call(self, command: str, *, stdin=None, **given) -> Done:
        if isinstance(stdin, bytes | None) and self._once(command):
            super()._call(command, stdin=stdin and stdin[: len(stdin) // 2], **given)
            raise LinkError("cut: fix it")
        return super()._call(command, stdin=stdin, **given)

    def _push(self, source: Path, target: str, timeout_s: float) -> Done:
        if self._once(target):
            Path(f"{target}.part").write_bytes(source.read_bytes()[: BLOCK_BYTES + 3])
            raise LinkError("cut: fix it")
        return super()._push(source, target, timeout_s)


def test_a_link_that_breaks_everywhere(tmp_path: Path, bundle: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpa_edge.bench.transports.process.FIRST_WAIT_S", 0.01)
    assert bundle.is_at(bundle.send(Torn(tmp_path / "root")))


def test_a_link_that_stays_cut_is_an_error(tmp_path: Path, bundle: Made) -> None:
    device = Torn(tmp_path / "root")
    device.patience_s = 0.5
    with pytest.raises(LinkError):
        bundle.send(device)


def test_many_small_files_travel_in_packs(device: Counted, made) -> None:
    one = made("one", {f"{n}.png": os.urandom(200_000) for n in range(100)})
    assert one.is_at(one.send(device))
    assert device.sent_bytes > 2 * PACK_BYTES
    assert device.calls < 15


def without(tmp_path: Path, *names: str) -> str:
    """A PATH without some programs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for path in Path(folder).iterdir():
            if path.name not in names and not (tools / path.name).is_symlink():
                (tools / path.name).symlink_to(path)
    return str(tools)


HASHERS = ["sha256sum", "toybox", "busybox", "shasum", "python3", "openssl"]


@pytest.mark.parametrize("hasher", [name for name in HASHERS if name != "shasum"])
def test_what_hashes_and_unpacks_depends_on_the_device(
    device: Counted, bundle: Made, tmp_path: Path, hasher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ["tar", *(name for name in HASHERS if name != hasher)]
    monkeypatch.setenv("PATH", without(tmp_path, *missing))
    assert bundle.is_at(bundle.send(device))


def test_a_device_that_cannot_hash_is_refused(device: Counted, bundle: Made, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", without(tmp_path, *HASHERS))
    with pytest.raises(MpaError, match="no program for SHA-256"):
        bundle.send(device)


@pytest.mark.parametrize("path", ["../up", "/abs", "a//b", "a/./b", "a\nb", ""])
def test_paths_out_of_the_bundle_are_refused(device: Counted, tmp_path: Path, path: str) -> None:
    with pytest.raises(MpaError, match="plain relative name"):
        send(device, tmp_path, {path: sha256(b"")}, sha256(b""))


def test_a_hash_that_is_none_is_refused(device: Counted, tmp_path: Path) -> None:
    with pytest.raises(MpaError, match="is not a SHA-256"):
        send(device, tmp_path, {}, "../../etc")


def small_bundle(made, name: str) -> Made:
    return made(name, {"own": name.encode(), "shared": b"shared"})


def test_old_bundles_go_with_what_only_they_used(device: Counted, made) -> None:
    bundles = [small_bundle(made, f"b{n}") for n in range(5)]
    for age, one in enumerate(reversed(bundles)):
        remote = one.send(device)
        os.utime(remote / ".complete", (time.time() - 1000 + age,) * 2)
    stray, old, fresh = (Path(device.root, "files", name) for name in (sha256(b"stray"), "x.new.part", "y.new.part"))
    for path in (stray, old, fresh):
        path.write_bytes(b"stray")
    os.utime(old, (time.time() - 3 * 86400,) * 2)
    Path(device.root, "of somebody else").mkdir()
    remove(device, keep=2)
    kept = {one.sha256 for one in bundles[:2]}
    assert set(os.listdir(device.root)) == kept | {"files", "of somebody else"}
    contents = {digest for one in bundles[:2] for digest in one.files.values()}
    assert set(os.listdir(f"{device.root}/files")) == contents | {fresh.name}
    assert bundles[0].is_at(Path(device.root, bundles[0].sha256))
    remove(device, keep=0)
    assert set(os.listdir(device.root)) == {"files", "of somebody else"}


def test_what_has_no_name_of_ours_is_never_removed(device: Counted, made, tmp_path: Path) -> None:
    small_bundle(made, "one").send(device)
    outside = tmp_path / "outside"
    strange = [Path(device.root, name) for name in ("x\n-rf", "-rf", "a" * 63, "A" * 64, "of somebody")]
    for folder in (*strange, outside):
        folder.mkdir()
        (folder / ".complete").touch()
        (folder / "kept").touch()
    Path(device.root, "f" * 64).symlink_to(outside)
    Path(device.root, "files", "of somebody").touch()
    remove(device, keep=0)
    for folder in (*strange, outside):
        assert (folder / "kept").exists()
    assert Path(device.root, "files", "of somebody").exists()
    assert os.listdir(f"{device.root}/files") == ["of somebody"]


def test_a_clock_that_jumped_back_does_not_cost_the_bundle_that_was_just_sent(device: Counted, made) -> None:
    bundles = [small_bundle(made, f"b{n}") for n in range(5)]
    for one in bundles[:4]:
        one.send(device)
    remote = bundles[4].send(device)
    os.utime(remote / ".complete", (0, 0))
    remove(device, bundles[4].sha256, keep=2)
    assert bundles[4].is_at(remote)
    assert len(os.listdir(device.root)) == 4


def test_what_a_broken_link_left_of_a_bundle_goes(device: Counted, made) -> None:
    one, other = small_bundle(made, "one"), small_bundle(made, "other")
    one.send(device)
    (other.send(device) / ".complete").unlink()
    remove(device, one.sha256)
    assert set(os.listdir(device.root)) == {"files", one.sha256}


@pytest.mark.parametrize("hasher", ["sha256sum", "python3"])
def test_a_program_that_greets_does_not_name_what_is_removed(
    device: Counted, bundle: Made, tmp_path: Path, hasher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = without(tmp_path, *HASHERS)
    real = shutil.which(hasher)
    Path(tools, hasher).write_text(f'#!/bin/sh\necho "Welcome ../of-the-user"\nexec {real} "$@"\n')
    Path(tools, hasher).chmod(0o755)
    monkeypatch.setenv("PATH", tools)
    Path(device.root).mkdir()
    Path(device.root, "of-the-user").touch()
    assert bundle.is_at(bundle.send(device))
    assert Path(device.root, "of-the-user").exists()


def test_cleaning_an_empty_device_does_nothing(device: Counted) -> None:
    remove(device)
    assert not Path(device.root).exists()


@pytest.mark.parametrize("name", ["it's one", "one/server/3"])
def test_a_bundle_with_a_running_job_is_left_in_peace(device: Counted, made, name: str) -> None:
    one = small_bundle(made, "one")
    remote = one.send(device)
    job = Job(device, f"{remote}/jobs/{name}")
    job.start("sleep 61.7")
    try:
        remove(device, keep=0)
        assert one.is_at(remote)
        # nor is it hashed while it is measured: not even a damage is looked for
        (remote / "own").write_bytes(b"other")
        one.send(device)
        assert (remote / "own").read_bytes() == b"other"
    finally:
        job.stop()
    one.send(device)
    assert one.is_at(remote)
    remove(device, keep=0)
    assert not remote.exists()


@pytest.mark.peer
def test_a_device_that_is_too_small_is_told_before(tmp_path: Path, bundle: Made, made) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", small], check=True)
    try:
        assert bundle.is_at(bundle.send(LocalTransport(str(small))))
        before = set(os.listdir(small / "files"))
        other = made("other", {"large.bin": os.urandom(8 * BLOCK_BYTES)})
        with pytest.raises(MpaError, match=r"local has 1\d MiB free below .*, and 24 MiB are needed: free some"):
            other.send(LocalTransport(str(small)))
        assert set(os.listdir(small / "files")) == before
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.fixture
def exfat(tmp_path: Path) -> Iterator[Path]:
    """A memory card: no hard links, no owners, times in steps of two seconds."""
    image, card = tmp_path / "image", tmp_path / "card"
    image.touch()
    os.truncate(image, 64 << 20)
    card.mkdir()
    run(program("mkfs.exfat"), image)
    loop = run(program("losetup"), "-f", "--show", image).strip()
    try:
        run(program("mount.exfat-fuse"), loop, card)
        try:
            yield card
        finally:
            run("umount", card)
    finally:
        run(program("losetup"), "-d", loop)


@pytest.mark.peer
def test_without_hard_links_nothing_is_sent_twice_either(exfat: Path, made) -> None:
    device = Counted(exfat / "root")
    images = {f"images/{n}.png": os.urandom(3000) for n in range(80)}
    one = made("one", {**images, "model.gguf": os.urandom(5 * BLOCK_BYTES), "order.json": b"1"})
    other = made("other", {path: (one.folder / path).read_bytes() for path in one.files} | {"order.json": b"2"})
    for bundle in (one, other, one):
        remote = bundle.send(device)
        remove(device, bundle.sha256)
        assert bundle.is_at(remote)
    assert device.sent_bytes < sum(path.stat().st_size for path in one.folder.rglob("*.*")) + 200_000
    before = (remote / "model.gguf").stat().st_mtime
    (remote / "images" / "7.png").write_bytes(b"damaged")
    device.sent_bytes = 0
    assert one.is_at(one.send(device))
    assert device.sent_bytes < 30_000
    assert (remote / "model.gguf").stat().st_mtime == before  # what is right is not written again
    large = made("large", {"model.gguf": os.urandom(20 * BLOCK_BYTES)})
    with pytest.raises(MpaError, match=r"has 4\dMiB free|has \d\d MiB free below .*, and 56 MiB are needed"):
        large.send(device)
    remove(device, keep=0)
    assert os.listdir(device.root) == ["files"]
    assert os.listdir(f"{device.root}/files") == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshPeer]:
    with sshd(tmp_path_factory.mktemp("sshd")) as peer:
        yield peer


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbPeer]:
    with adbd(tmp_path_factory.mktemp("adbd")) as peer:
        yield peer


@pytest.mark.peer
def test_ssh_a_server_killed_in_a_transfer(server: SshPeer, made, tmp_path: Path, capsys) -> None:
    one = made("one", {"model.gguf": os.urandom(32 * BLOCK_BYTES), "a": b"1"})
    way = connect(server.via, ssh_config=server.config_file, root=f"{tmp_path}/it's a; root")
    part = Path(way.root, "files", f"{one.files['model.gguf']}.new.part")
    killed = threading.Thread(target=kill_when_begun, args=(part, server))
    killed.start()
    assert one.is_at(one.send(way))
    killed.join()
    assert "cannot be reached" in capsys.readouterr().err
    way.close()


def kill_when_begun(part: Path, peer: SshPeer) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if part.exists() and part.stat().st_size > BLOCK_BYTES:
            peer.kill()
            peer.start()
            return
        time.sleep(0.002)


@pytest.mark.peer
def test_adb_a_device_that_restarts_in_a_transfer(phone: AdbPeer, made, tmp_path: Path, monkeypatch, capsys) -> None:
    for key, value in phone.env.items():
        monkeypatch.setenv(key, value)
    one = made("one", {"model.gguf": os.urandom(32 * BLOCK_BYTES), "a": b"1"})
    way = connect(phone.via, root=f"{tmp_path}/it's a; root")
    part = Path(way.root, "files", f"{one.files['model.gguf']}.new.part")
    killed = threading.Thread(target=kill_when_begun, args=(part, phone))
    killed.start()
    assert one.is_at(one.send(way))
    killed.join()
    assert "does not answer" in capsys.readouterr().err
