"""Send a bundle to the device by content: only what is missing is sent, and what arrived is hashed there.

ROOT/files/SHA256 holds each content once, for all bundles; ROOT/HASH is a bundle of hard links into it (copies where
the file system has no links) with a `.complete` mark, which lists its contents. A content gets its final name only
after it was hashed there. Nothing is removed that does not have a name of ours: 64 hexadecimal digits.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from mpa_edge.bench.transports.transport import Transport, quoted_path
from mpa_edge.errors import MpaError
from mpa_edge.progress import progress

# besides the one in use
KEPT_BUNDLES = 2
SHORT_S = 60.0
# slower than any device worth benchmarking; sets the time limit of a call
SLOWEST_BYTES_PER_S = 200_000
# files up to this size are sent together: one call for each of 500 images would take longer than the images
SMALL_BYTES, PACK_BYTES, MIN_PACKED = 1 << 18, 8 << 20, 4
NAMES_PER_CALL = 400
# room for what the benchmark itself writes on the device
MARGIN_BYTES = 16 << 20
ROUNDS = 3
SHA256 = re.compile(r"[0-9a-f]{64}")
# prints `HEX  NAME` for each argument, with whichever program the device has
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
    elif command -v openssl >/dev/null 2>&1; then openssl dgst -sha256 -r "$@" | sed 's/ [*]/  /'
    else echo 'no program for SHA-256 there: install coreutils or python3' >&2; return 1; fi
}
"""
# ours: whether $1 is a SHA-256; runs: whether a job of the bundle $1 is running
RUNS = """
ours() { case $1 in *[!0-9a-f]*) false ;; *) [ ${#1} -eq 64 ] ;; esac; }
runs() {
    for one in "$1"/jobs/*/job.sh "$1"/jobs/*/*/job.sh "$1"/jobs/*/*/*/job.sh; do
        [ -f "$one" ] || continue
        case $(sh "$one" poll "${one%/job.sh}" 999999999999 | head -n 1) in running*) return 0 ;; esac
    done
    return 1
}
"""
# stdin: names; existing files are hashed, and wrong ones removed. NAME.new, when right, becomes NAME.
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
    ours "$name" || continue
    if [ "$hex" != "$name" ]; then rm -f "$found"
    elif [ "$found" != "$name" ]; then mv -f "$found" "$name"
    fi
    [ "$hex" != "$name" ] || echo "$name"
done
"""
# stdin: SHA256 PATH; $bundle gets them, each complete from the first moment; exit 2 where a content is missing
LINK = """
mkdir -p "$bundle" && : >"$bundle/.listed" || exit 1
while IFS= read -r line; do
    content=files/${line%% *}
    path=$bundle/${line#* }
    [ -f "$content" ] || exit 2
    echo "${line%% *}" >>"$bundle/.listed" || exit 1
    [ "$content" -ef "$path" ] && continue
    mkdir -p "${path%/*}" || exit 1
    ln -f "$content" "$path" 2>/dev/null && continue
    cmp -s "$content" "$path" 2>/dev/null && continue
    cp -f "$content" "$path.new" && mv -f "$path.new" "$path" || { rm -f "$path.new"; exit 1; }
done
mv -f "$bundle/.listed" "$bundle/.complete"
"""
# the newest $keep bundles stay, and those with a running job; contents that no bundle lists and old .new files go.
# $current was just sent, whatever the device's clock says about it
CLEAN = """
ls -dt ./*/.complete 2>/dev/null | while IFS=/ read -r _ bundle _; do
    ours "$bundle" && [ ! -L "$bundle" ] || continue
    [ "$bundle" != "$current" ] || continue
    keep=$((keep - 1))
    if [ "$keep" -lt 0 ] && ! runs "$bundle"; then rm -rf "$bundle"; fi
done
for bundle in *; do
    if ours "$bundle" && [ ! -L "$bundle" ] && [ ! -e "$bundle/.complete" ] && ! runs "$bundle"; then
        rm -rf "$bundle"
    fi
done
[ -d files ] && [ ! -L files ] || exit 0
listed=$(cat ./*/.complete 2>/dev/null)
for content in files/*; do
    name=${content#files/}
    ours "$name" || continue
    case $listed in *"$name"*) ;; *) rm -f "$content" ;; esac
done
find files -type f -name '*.new*' -mtime +0 -exec rm -f {} +
"""


def send(transport: Transport, bundle: Path, files: Mapping[str, str], sha256: str) -> str:
    """Copy a bundle to the device and return its folder there. Files that are there and intact are not sent again.

    files: path inside the bundle -> SHA-256; sha256: of the whole. While a job of the bundle is running, its files are
    left alone. MpaError where the device is full, or what arrives is damaged again and again.
    """
    if not SHA256.fullmatch(sha256):
        raise MpaError(f"{sha256!r} is not a SHA-256: make the bundle again")
    for path in files:
        if {"", ".", ".."} & set(path.split("/")) or min(path) < " ":
            raise MpaError(f"{path!r} cannot be a file of a bundle: give it a plain relative name")
    folder, store = f"{transport.root}/{sha256}", f"{transport.root}/files"
    listing = "".join(f"{digest} {path}\n" for path, digest in sorted(files.items())).encode()
    # hashing would disturb what a running job measures
    is_running = f'{RUNS}b={quoted_path(folder)}; [ -f "$b/.complete" ] && runs "$b"'
    if transport.run(is_running, timeout_s=SHORT_S).rc == 0:
        return folder
    contents = {digest: bundle / path for path, digest in files.items()}
    link = f"cd {quoted_path(transport.root)} && bundle={sha256} || exit 1{LINK}"
    check = f"mkdir -p {quoted_path(store)} && cd {quoted_path(store)} || exit 1\n{HASH}{RUNS}{CHECK}"
    for attempt in range(ROUNDS + 1):
        intact: set[str] = set()
        for first in range(0, len(contents), NAMES_PER_CALL):
            names = list(contents)[first : first + NAMES_PER_CALL]
            limit_s = _limit_s(contents[name] for name in names)
            listed = transport.checked(
                f"keep files in {store}", check, timeout_s=limit_s, stdin=" ".join(names).encode()
            )
            intact.update(listed.split())
        missing = {digest: path for digest, path in contents.items() if digest not in intact}
        if not missing:
            done = transport.run(link, timeout_s=SHORT_S + len(files) / 10, stdin=listing)
            if done.rc == 0:
                return folder
            if done.rc != 2:  # 2: a file disappeared in the meantime
                transport.refused(f"write {folder}", done)
        elif attempt < ROUNDS:
            _send_missing(transport, store, missing)
    raise MpaError(
        f"what arrived on {transport.name} differs from what was sent, {ROUNDS} times over: "
        "check cable and storage, or make the bundle again"
    )


def remove(transport: Transport, current: str = "", keep: int = KEPT_BUNDLES) -> None:
    """Remove all bundles from the device but `current` (its SHA-256), the `keep` newest others and those with a running
    job, and the files that only they used.
    """
    script = f"cd {quoted_path(transport.root)} 2>/dev/null || exit 0\nkeep={keep} current={current}{RUNS}{CLEAN}"
    transport.checked(f"clean up {transport.root}", script, timeout_s=SHORT_S)


def _send_missing(transport: Transport, store: str, missing: Mapping[str, Path]) -> None:
    """Send files; none of them has its final name yet."""
    folder, missing_bytes = quoted_path(store), sum(map(_size, missing.values()))
    try_link = ": >try.new && { ln try.new tried.new 2>/dev/null || echo 'no links'; }; rm -f try.new tried.new"
    ask = f"cd {folder} && {{ {try_link}; df -Pk .; du -k ./*.part 2>/dev/null; true; }}"
    said = transport.checked("report its free space", ask, timeout_s=SHORT_S)
    # without links, the bundle itself is a copy
    needed = missing_bytes * (2 if said.startswith("no links") else 1) + MARGIN_BYTES
    free = _free_kib(said)
    if free is not None and 1024 * free < needed:
        raise MpaError(
            f"{transport.name} has {free >> 10} MiB free below {transport.root}, "
            f"and {needed >> 20} MiB are needed: free some space there, or choose another folder with --root"
        )
    small = [digest for digest, path in missing.items() if _size(path) <= SMALL_BYTES]
    if len(small) < MIN_PACKED or transport.run("command -v tar >/dev/null", timeout_s=SHORT_S).rc:
        small = []
    # packs of about PACK_BYTES, which is what a broken connection makes us send again
    packs: dict[int, list[str]] = {}
    total = 0
    for digest in small:
        total += _size(missing[digest]) + tarfile.BLOCKSIZE
        packs.setdefault(total // PACK_BYTES, []).append(digest)
    with progress(f"sending to {transport.name}", len(missing)) as advance:
        for pack in packs.values():
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for digest in pack:
                    member = tarfile.TarInfo(f"{digest}.new")
                    member.size, member.mode = _size(missing[digest]), 0o644
                    with missing[digest].open("rb") as file:
                        tar.addfile(member, file)
            limit_s, unpack = _limit_s(missing[digest] for digest in pack), f"cd {folder} && tar -xomf -"
            transport.checked("unpack files", unpack, timeout_s=limit_s, stdin=content.getvalue())
            advance(len(pack))
        for digest, path in missing.items():
            if digest not in small:
                transport.push(path, f"{store}/{digest}.new", timeout_s=_limit_s([path]))
                advance(1)


def _size(path: Path) -> int:
    return path.stat().st_size


def _free_kib(text: str) -> int | None:
    """Free space by df, plus what partly sent files already take, by du; None where df does not say.

    >>> _free_kib("Filesystem 1024-blocks Used Free Capacity Mounted on\\n/dev/a 9 2 7 22% /my disk\\n3 ./a.part\\n")
    10
    """
    parts = sum(int(kib) for kib in re.findall(r"^(\d{1,15})\s+\S+[.]part$", text, re.MULTILINE))
    found = re.search(r"\s(\d{1,15})\s+\d{1,3}%\s", text)
    return int(found[1]) + parts if found else None


def _limit_s(paths: Iterable[Path]) -> float:
    return SHORT_S + sum(map(_size, paths)) / SLOWEST_BYTES_PER_S
