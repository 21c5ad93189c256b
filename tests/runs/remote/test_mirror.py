"""The working copy of a run behind a URL: what is sent, in which order, and who wins. The store is fsspec's memory."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path

import pytest

from mpa_edge.errors import MpaError
from mpa_edge.runs.files import write_bytes
from mpa_edge.runs.log import LOG_FILE, logger
from mpa_edge.runs.manifest import INPUTS, MANIFEST, finish, prepare
from mpa_edge.runs.remote import mirror
from mpa_edge.runs.remote.lease import LOCK_NAME, Lease
from mpa_edge.runs.remote.mirror import Mirror, work_folder, working_copy
from mpa_edge.runs.remote.stores import Store
from mpa_edge.runs.write_hooks import WATCHERS, tell
from tests.runs.remote.objects import listing

COUNT = itertools.count()
STAGE = "1-annotate"


@pytest.fixture
def url() -> str:
    return f"memory://mirror/{next(COUNT)}"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpa_edge.runs.remote.lease.SETTLE_S", 0.0)


def stage(folder: Path, *parts: int, inputs: str = "1", done: bool = False, text: str = "rows") -> None:
    """What a stage does: prepare, write parts, finish."""
    prepare(folder / STAGE, {"images": inputs})
    tell(folder / STAGE, settled=True)
    for part in parts:
        write_bytes(folder / STAGE / f"part-{part}", f"{text} {part} of {inputs}".encode())
    if done:
        finish(folder / STAGE, STAGE, inputs={"images": inputs}, config={}, seed=0, counts={})


def names(url: str) -> set[str]:
    return set(listing(url)) - {LOCK_NAME}


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if mirror.is_mirrored(name)}


def stored(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {name: store.read(name) or b"" for name in names(url)}


def copy_of(url: str, folder: Path) -> Mirror:
    folder.mkdir(exist_ok=True)
    return Mirror(Store(url), folder)


def test_everything_arrives_and_comes_back_elsewhere(url: str, tmp_path: Path) -> None:
    with working_copy(url, tmp_path / "a") as folder:
        write_bytes(folder / "run.json", b"{}")
        stage(folder, 0, 1, done=True)
        (folder / "images").mkdir()
        write_bytes(folder / "images" / "0.png", b"drawn again anywhere")
    assert names(url) == {"run.json", LOG_FILE, *(f"{STAGE}/{n}" for n in (INPUTS, MANIFEST, "part-0", "part-1"))}
    assert LOCK_NAME not in listing(url)
    sent = stored(url)
    with working_copy(url, tmp_path / "b") as other:
        received = files(other)
        assert received.pop(LOG_FILE).startswith(sent.pop(LOG_FILE))
        assert received == sent


def test_parts_arrive_while_the_stage_works(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "SEND_EVERY_S", 0.02)
    with working_copy(url, tmp_path / "a") as folder:
        stage(folder, 0)
        tell(folder / STAGE)
        deadline = time.monotonic() + 120
        while f"{STAGE}/part-0" not in names(url):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert WATCHERS == []


class Recorded(Store):
    """Notes the order of what is sent and deleted, one name at a time; may be cut off after so many."""

    def __init__(self, url: str, cut_after: int = 10**9) -> None:
        super().__init__(url)
        self.did: list[str] = []
        self._left = cut_after

    def _spend(self, what: str) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        self.did.append(what)

    def put(self, folder, names):
        found = {}
        for name in names:
            self._spend(f"+{name.rpartition('/')[2]}")
            found |= super().put(folder, [name])
        return found

    def delete(self, names):
        for name in names:
            self._spend(f"-{name.rpartition('/')[2]}")
            super().delete([name])


def recorded(url: str, folder: Path, cut_after: int = 10**9) -> list[str]:
    """Names in the order in which one push moves them."""
    store = Recorded(url, cut_after)
    try:
        Mirror(store, folder).push()
    except KeyboardInterrupt:
        return [*store.did, "cut"]
    return store.did


def test_the_manifest_comes_last_and_goes_first(url: str, tmp_path: Path) -> None:
    copy_of(url, tmp_path / "a").pull()
    stage(tmp_path / "a", 0, 1, done=True)
    first = recorded(url, tmp_path / "a")
    assert (first[0], first[-1]) == (f"+{INPUTS}", f"+{MANIFEST}")
    write_bytes(tmp_path / "a" / STAGE / "part-1", b"asked once more")
    finish(tmp_path / "a" / STAGE, STAGE, inputs={"images": "1"}, config={}, seed=0, counts={"rows": 1})
    again = recorded(url, tmp_path / "a")
    assert [one for one in again if one.endswith((MANIFEST, "part-1"))] == [f"-{MANIFEST}", "+part-1", f"+{MANIFEST}"]
    assert recorded(url, tmp_path / "a") == []


def test_other_inputs_throw_everything_away_before_the_first_new_part(url: str, tmp_path: Path) -> None:
    copy_of(url, tmp_path / "a").pull()
    stage(tmp_path / "a", 0, 1, done=True)
    recorded(url, tmp_path / "a")
    stage(tmp_path / "a", 0, inputs="2")
    did = recorded(url, tmp_path / "a")
    assert set(did[:2]) == {f"-{MANIFEST}", f"-{INPUTS}"}
    assert did.index("-part-0") < did.index(f"+{INPUTS}")
    assert stored(url) == files(tmp_path / "a")


def consistent(found: dict[str, bytes]) -> bool:
    """What the program may rely on: a manifest's outputs are there, and parts are made of the inputs beside them."""
    manifest, inputs = found.get(f"{STAGE}/{MANIFEST}"), found.get(f"{STAGE}/{INPUTS}")
    if manifest is not None and any(f"{STAGE}/{name}" not in found for name in json.loads(manifest)["outputs"]):
        return False
    parts = [data.decode() for name, data in found.items() if "part-" in name]
    made_of = json.loads(inputs)["images"] if inputs else None
    return made_of is None or all(part.endswith(f" of {made_of}") for part in parts)


@pytest.mark.parametrize("cut_after", range(9))
@pytest.mark.parametrize("later", ["more", "other inputs"])
def test_cut_off_anywhere_the_url_is_whole_and_the_next_run_ends_well(
    url: str, tmp_path: Path, cut_after: int, later: str
) -> None:
    here = tmp_path / "a"
    copy_of(url, here).pull()
    stage(here, 0, 1, done=True)
    recorded(url, here)
    (here / STAGE / MANIFEST).unlink()
    stage(here, *((0, 1, 2) if later == "more" else (0,)), inputs="1" if later == "more" else "2", done=True)
    recorded(url, here, cut_after)
    assert consistent(stored(url))
    other = copy_of(url, tmp_path / "b")  # another machine goes on from what is there
    other.pull()
    assert files(tmp_path / "b") == stored(url)
    again = copy_of(url, here)  # or the same one
    again.pull()
    again.push()
    assert files(here) == stored(url)
    assert consistent(stored(url))
    assert len([n for n in names(url) if "part-" in n]) == (3 if later == "more" else 1)


def test_the_logs_of_two_machines_are_one(url: str, tmp_path: Path) -> None:
    with working_copy(url, tmp_path / "one") as one:
        write_bytes(one / "run.json", b"{}")
        logger.info("on the first machine")
    with working_copy(url, tmp_path / "two"):
        logger.info("on the second machine")
    text = (Store(url).read(LOG_FILE) or b"").decode()
    assert text.index("on the first machine") < text.rindex("versions: ") < text.index("on the second machine")


def test_what_others_did_since_wins(url: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    copy_of(url, one).pull()
    stage(one, 0, 1)
    recorded(url, one)
    stage(one, 7)  # never sent
    copy_of(url, two).pull()
    stage(two, 0, 2, inputs="2", done=True)
    recorded(url, two)
    copy_of(url, one).pull()
    assert files(one) == stored(url) == files(two)


def test_unsent_parts_of_the_same_inputs_are_kept(url: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    copy_of(url, one).pull()
    stage(one, 0)
    recorded(url, one)
    write_bytes(one / STAGE / "part-7", b"rows 7 of 1")
    copy_of(url, two).pull()
    write_bytes(two / STAGE / "part-1", b"rows 1 of 1")
    recorded(url, two)
    copy_of(url, one).pull()
    assert {"part-0", "part-1", "part-7"} <= {path.name for path in (one / STAGE).iterdir()}


def test_a_journal_that_a_kill_tore_costs_only_a_copy(url: str, tmp_path: Path) -> None:
    copy_of(url, tmp_path / "a").pull()
    stage(tmp_path / "a", 0, 1, done=True)
    recorded(url, tmp_path / "a")
    journal = tmp_path / "a" / mirror.JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])
    before = files(tmp_path / "a")
    again = copy_of(url, tmp_path / "a")
    again.pull()
    again.push()
    assert files(tmp_path / "a") == stored(url) == before


def test_a_folder_with_other_content_is_left_alone(url: str, tmp_path: Path) -> None:
    write_bytes(tmp_path / "thesis.tex", b"years")
    with pytest.raises(MpaError, match="is not a working copy of .*: choose an empty folder with --work"):
        copy_of(url, tmp_path)
    assert (tmp_path / "thesis.tex").read_bytes() == b"years"


def test_a_working_copy_belongs_to_one_url(url: str, tmp_path: Path) -> None:
    copy_of(url, tmp_path).pull()
    with pytest.raises(MpaError, match="is not a working copy of memory://elsewhere"):
        copy_of("memory://elsewhere", tmp_path)


def test_two_urls_have_two_working_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = work_folder("s3://a/x"), work_folder("s3://b/x")
    assert first != second
    assert first == work_folder("s3://a/x/")
    assert first.is_relative_to(tmp_path)


def test_an_error_in_the_block_is_what_the_user_reads(url: str, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), working_copy(url, tmp_path / "a") as folder:
        stage(folder, 0)
        raise ZeroDivisionError
    assert f"{STAGE}/part-0" in names(url)
    assert LOCK_NAME not in listing(url)


# --- the lock ---------------------------------------------------------------------------------------------------------


def lock(url: str, **changed: object) -> None:
    """The lock object of a process on another machine."""
    said = {"owner": "x", "host": "node7", "pid": 17, "place": "elsewhere", "started": 1.0, "beat": 0}
    Store(url).write(LOCK_NAME, json.dumps(said | changed).encode())


def test_the_second_one_gets_one_line(url: str) -> None:
    first = Lease(Store(url), lease_s=0.4)
    first.take()
    with pytest.raises(MpaError, match=r"in use by process \d+ on .*: wait for it, stop it, or choose another --out$"):
        Lease(Store(url), lease_s=2).take()
    first.release()
    second = Lease(Store(url), lease_s=0.4)
    second.take()
    second.release()


def test_a_silent_owner_elsewhere_is_waited_for_once(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    lock(url)
    lease, started = Lease(Store(url), lease_s=0.4), time.monotonic()
    lease.take()
    assert 0.4 <= time.monotonic() - started < 5
    assert "process 17 on node7" in capsys.readouterr().err
    lease.release()
    assert Store(url).read(LOCK_NAME) is None


def test_a_dead_owner_on_this_machine_is_not_waited_for(url: str) -> None:
    dead = Lease(Store(url))
    lock(url, place=dead._me["place"], pid=2**22 + 1)
    started = time.monotonic()
    dead.take()
    assert time.monotonic() - started < 5
    dead.release()


def test_of_many_that_come_together_one_gets_it(url: str) -> None:
    taken: list[Lease] = []
    refused: list[str] = []

    def come() -> None:
        lease = Lease(Store(url), lease_s=0.5)
        try:
            lease.take()
            taken.append(lease)
        except MpaError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 5)
    taken[0].release()


def test_who_lost_the_lock_writes_no_more(url: str, tmp_path: Path) -> None:
    def work() -> None:
        with working_copy(url, tmp_path / "a", lease_s=0.2) as folder:
            stage(folder, 0)
            tell(folder, settled=True)
            before.update(stored(url))
            lock(url)
            write_bytes(folder / STAGE / "part-1", b"too late")
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                tell(folder / STAGE)
                time.sleep(0.05)

    before: dict[str, bytes] = {}
    with pytest.raises(MpaError, match="in use by process 17 on node7"):
        work()
    assert stored(url) == before
    assert json.loads(Store(url).read(LOCK_NAME) or b"")["host"] == "node7"


def test_a_lock_that_nobody_can_read_is_somebodys(url: str) -> None:
    Store(url).write(LOCK_NAME, b"\xff not json")
    lease, started = Lease(Store(url), lease_s=0.3), time.monotonic()
    lease.take()
    assert time.monotonic() - started >= 0.3
    lease.release()


def test_a_lock_whose_answer_was_lost_is_ours(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def created_unheard(self: Store, name: str, data: bytes) -> bool:
        create(self, name, data)
        return False

    create = Store.create
    monkeypatch.setattr(Store, "create", created_unheard)
    lease, started = Lease(Store(url), lease_s=30.0), time.monotonic()
    lease.take()
    assert time.monotonic() - started < 5
    lease.release()


def test_links_to_folders_are_no_files(url: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    copy_of(url, tmp_path / "a").pull()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "other")
    recorded(url, tmp_path / "a")
    assert names(url) == set()
