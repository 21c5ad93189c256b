"""A bundle goes to the device by content: only what is missing is sent, and what arrived is hashed there.

ROOT/files/SHA256 holds each content once, for all bundles; ROOT/HASH is a bundle of hard links into it (copies where
the file system knows no links) with a `.complete` mark. A content gets its final name only after it was hashed there.
"""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from mpa_edge.bench.transports import Done, Transport
from mpa_edge.bench.transports.patience import PATIENCE_S, patiently
from mpa_edge.bench.transports.shell import quoted_path, refused
from mpa_edge.errors import MpaError
from mpa_edge.progress import progress

KEPT_BUNDLES = 3
SHORT_S = 60.0
# slower than any device that is worth a benchmark; sets the longest time that a call may take
SLOWEST_BYTES_PER_S = 200_000
# files up to this size travel together: a call for each of 500 pictures takes longer than the pictures
SMALL_BYTES, PACK_BYTES, FEWEST_PACKED = 1 << 18, 8 << 20, 4
NAMES_PER_CALL = 400
# what the bench itself writes there
MARGIN_BYTES = 16 << 20
ROUNDS = 3
SHA256 = re.compile(r"[0-9a-f]{64}")
# prints `HEX  NAME` for each of its arguments, with whatever the device has
HASH = """
hash() {
    if command -v sha256sum >/dev/null 2>&1; then sha256sum "$@"
    elif toybox sha256sum </dev/null >/dev/null 2>&1; then toybox sha256sum "$@"
    elif busybox sha256sum </dev/null >/dev/null 2>&1; then busybox sha256sum "$@"
    elif command -v shasum >/dev/null 2>&1; then shasum -a 256 "$@"
    elif command -v python3 >/dev/null 2>&1; then python3 -c '
import hashlib, sys
for name in sys.argv[1:]:
    print(hashlib.sha256(open(name, "rb").read()).hexdigest(), "", name)' "$@"
    else echo 'no program for SHA-256 there: install coreutils or python3' >&2; return 1; fi
}
"""
# $1: folder of a bundle; whether one of its jobs runs now
RUNS = """
runs() {
    for one in "$1"/jobs/*/job.sh "$1"/jobs/*/*/job.sh "$1"/jobs/*/*/*/job.sh; do
        [ -f "$one" ] || continue
        case $(sh "$one" poll "${one%/job.sh}" 999999999999 | head -n 1) in running*) return 0 ;; esac
    done
    return 1
}
"""
# stdin: names; those that are there are hashed, and the wrong ones removed. NAME.new, when right, becomes NAME.
CHECK = """
set -- $(cat)
for name; do
    shift
    for found in "$name" "$name.new"; do [ -f "$found" ] && set -- "$@" "$found"; done
done
[ $# -gt 0 ] || exit 0
sums=$(hash "$@") || exit 1
echo "$sums" | while read -r hex found; do
    name=${found%.new}
    if [ "$hex" != "$name" ]; then rm -f "$found"
    elif [ "$found" != "$name" ]; then mv -f "$found" "$name"
    fi
    [ "$hex" != "$name" ] || echo "$name"
done
"""
# stdin: SHA256 PATH; $bundle gets them, each whole from the first moment
LINK = """
while IFS= read -r line; do
    content=files/${line%% *}
    path=$bundle/${line#* }
    [ "$content" -ef "$path" ] && continue
    mkdir -p "${path%/*}" || exit 1
    ln -f "$content" "$path" 2>/dev/null && continue
    cp -f "$content" "$path.new" && mv -f "$path.new" "$path" || exit 1
done
rm -f "$bundle/.complete" && : >"$bundle/.complete"
"""
# the newest $keep bundles stay, and those with a running job; then contents that no bundle links to, and old halves
CLEAN = """
ls -dt */.complete 2>/dev/null | while IFS= read -r mark; do
    bundle=${mark%/.complete}
    keep=$((keep - 1))
    if [ "$keep" -lt 0 ] && ! runs "$bundle"; then rm -rf "$bundle"; fi
done
[ ! -d files ] || find files -type f -links 1 ! -name '*.*' -exec rm -f {} +
[ ! -d files ] || find files -type f -name '*.*' -mtime +0 -exec rm -f {} +
"""


class Content(NamedTuple):
    """One file of a bundle."""

    sha256: str
    path: Path
    size: int


def send(
    transport: Transport, bundle: Path, files: Mapping[str, str], sha256: str, *, patience_s: float = PATIENCE_S
) -> str:
    """Bring a bundle to the device, the folder there. Whatever is there and right is not sent again.

    files: path inside the bundle -> SHA-256; sha256: of the whole. LinkErrors are waited out for `patience_s`, a broken
    transfer goes on where it was. While a job of the bundle runs, its files are left in peace.
    """
    upload = Upload(transport, sha256, patience_s)
    listing = [f"{digest} {_checked_path(path)}" for path, digest in sorted(files.items())]
    if upload.is_running():
        return upload.folder
    contents = {
        digest: Content(digest, bundle / path, (bundle / path).stat().st_size) for path, digest in files.items()
    }
    for attempt in range(ROUNDS + 1):
        have = upload.verified(contents)
        missing = [content for content in contents.values() if content.sha256 not in have]
        if not missing and upload.link(listing):
            return upload.folder
        if attempt < ROUNDS:
            upload.bring(missing)
    raise MpaError(
        f"what was sent to {transport.name} is not what arrived, {ROUNDS} times over: "
        "check cable and storage, or make the bundle anew"
    )


def remove(transport: Transport, keep: int = KEPT_BUNDLES) -> None:
    """Keep the newest bundles on the device and those with a running job; the rest goes, with what only it used."""
    script = f"cd {quoted_path(transport.root)} 2>/dev/null || exit 0\nkeep={keep}{RUNS}{CLEAN}"
    done = transport.run(script, timeout_s=SHORT_S)
    if done.rc:
        refused(transport.name, f"clean up {transport.root}", done)


def _checked_path(path: str) -> str:
    parts = path.split("/")
    if path.startswith("/") or {"", ".", ".."} & set(parts) or any(ord(character) < ord(" ") for character in path):
        raise MpaError(f"{path!r} cannot be a file of a bundle: give it a plain relative name")
    return path


class Upload:
    """The steps of `send`, on one device."""

    def __init__(self, transport: Transport, sha256: str, patience_s: float = PATIENCE_S) -> None:
        if not SHA256.fullmatch(sha256):
            raise MpaError(f"{sha256!r} is no SHA-256: make the bundle anew")
        self.folder = posixpath.join(transport.root, sha256)
        self._sha256 = sha256
        self._transport = transport
        self._store = posixpath.join(transport.root, "files")
        self._patience_s = patience_s

    def is_running(self) -> bool:
        """Whether a job of this complete bundle runs: then hashing would disturb what it measures."""
        script = f'{RUNS}b={quoted_path(self.folder)}; [ -f "$b/.complete" ] && runs "$b"'
        return self._run(script, SHORT_S).rc == 0

    def verified(self, contents: Mapping[str, Content]) -> set[str]:
        """Which of them are there, by their hash; damaged ones are removed."""
        found: set[str] = set()
        script = f"mkdir -p {quoted_path(self._store)} && cd {quoted_path(self._store)} || exit 1\n{HASH}{CHECK}"
        ordered = list(contents)
        for first in range(0, len(ordered), NAMES_PER_CALL):
            names = ordered[first : first + NAMES_PER_CALL]
            limit_s = _limit_s(contents[name] for name in names)
            done = self._done("hash files", self._run(script, limit_s, " ".join(names).encode()))
            found.update(done.stdout.decode().split())
        return found

    def bring(self, missing: Sequence[Content]) -> None:
        """Send what is missing; nothing of it has its final name yet."""
        if not missing:
            return
        self._check_space(sum(content.size for content in missing))
        small = [content for content in missing if content.size <= SMALL_BYTES]
        packs = _packs(small) if len(small) >= FEWEST_PACKED and self._has_tar() else []
        alone = [content for content in missing if content not in small or not packs]
        with progress(f"sending to {self._transport.name}", len(missing)) as advance:
            for pack in packs:
                self._send_pack(pack)
                advance(len(pack))
            for content in alone:
                self._send_file(content)
                advance(1)

    def link(self, listing: Sequence[str]) -> bool:
        """Make the bundle's folder of what is there; False where something got lost meanwhile."""
        script = f"cd {quoted_path(self._transport.root)} && bundle={self._sha256} || exit 1{LINK}"
        done = self._run(script, SHORT_S + len(listing) / 10, "".join(f"{line}\n" for line in listing).encode())
        if done.rc and b"No such file" not in done.stderr:
            refused(self._transport.name, f"write {self.folder}", done)
        return done.rc == 0

    def _check_space(self, needed: int) -> None:
        script = f"cd {quoted_path(self._store)} && df -Pk . && du -k ./*.part 2>/dev/null || true"
        text = self._done("say how much space it has", self._run(script, SHORT_S)).stdout.decode(errors="replace")
        free = 1024 * _free_kib(text)
        if free < needed + MARGIN_BYTES:
            raise MpaError(
                f"{self._transport.name} has {free >> 20} MiB free below {self._transport.root}, "
                f"and {(needed + MARGIN_BYTES) >> 20} MiB are needed: free some space there"
            )

    def _has_tar(self) -> bool:
        return self._run("command -v tar >/dev/null", SHORT_S).rc == 0

    def _send_pack(self, pack: Sequence[Content]) -> None:
        script = f"cd {quoted_path(self._store)} && tar -xf -"
        self._done("unpack files", self._run(script, _limit_s(pack), _tar(pack)))

    def _send_file(self, content: Content) -> None:
        target = posixpath.join(self._store, f"{content.sha256}.new")
        patiently(
            lambda: self._transport.push(content.path, target, timeout_s=_limit_s([content])),
            patience_s=self._patience_s,
        )

    def _run(self, script: str, timeout_s: float, stdin: bytes | None = None) -> Done:
        return patiently(
            lambda: self._transport.run(script, timeout_s=timeout_s, stdin=stdin), patience_s=self._patience_s
        )

    def _done(self, what: str, done: Done) -> Done:
        if done.rc:
            refused(self._transport.name, what, done)
        return done


def _free_kib(text: str) -> int:
    """Free space by df, with what halves of files already take, by du.

    >>> _free_kib("Filesystem 1024-blocks Used Free Capacity Mounted on\\n/dev/a 9 2 7 22% /my disk\\n3 ./a.part\\n")
    10
    """
    words = text.partition("\n")[2].split()
    percent = next(index for index, word in enumerate(words) if word.endswith("%"))
    halves = [line.split()[0] for line in text.splitlines() if line.endswith(".part")]
    return int(words[percent - 1]) + sum(int(kib) for kib in halves)


def _limit_s(contents: Iterable[Content]) -> float:
    return SHORT_S + sum(content.size for content in contents) / SLOWEST_BYTES_PER_S


def _packs(contents: Sequence[Content]) -> list[list[Content]]:
    """Groups of about PACK_BYTES: what a broken one costs to send again."""
    ends, total = [], 0
    for content in contents:
        total += content.size + tarfile.BLOCKSIZE
        ends.append(total // PACK_BYTES)
    pairs = zip(ends, contents, strict=True)
    return [[content for _, content in group] for _, group in groupby(pairs, key=lambda pair: pair[0])]


def _tar(pack: Sequence[Content]) -> bytes:
    """The files under the names that they have before they were hashed."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for content in pack:
            member = tarfile.TarInfo(f"{content.sha256}.new")
            member.size, member.mode = content.size, 0o644
            with content.path.open("rb") as file:
                tar.addfile(member, file)
    return made.getvalue()
