import itertools
import json

import pytest
from lightning_store_journal.store import JournalStore

from lightning_core import resolve
from lightning_core.errors import StoreUnavailableError
from lightning_core.testing import PluginPackageConformance, StoreConformance


class TestJournal(StoreConformance):
    @pytest.fixture
    def make_store(self, tmp_path):
        numbers = itertools.count()
        return lambda clock: JournalStore(f"{tmp_path}/{next(numbers)}.jsonl", clock=clock)

    @pytest.fixture
    def reopen(self):
        return lambda store, clock: JournalStore(str(store.path), clock=clock)


class TestPackage(PluginPackageConformance):
    distribution = "lightning-store-journal"

    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)


async def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "journal.jsonl"
    store = resolve("store", f"journal:///{path}")
    rollout = await store.enqueue_rollout("task")
    await store.close()
    whole = path.read_bytes()
    assert json.loads(whole)[2]["rollout_id"] == rollout.rollout_id
    path.write_bytes(whole + whole[:20])
    again = resolve("store", f"journal:///{path}")
    assert (await again.statistics()).rollouts == {"queuing": 1}
    await again.close()
    assert path.read_bytes() == whole


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("hello\n", encoding="utf-8")
    with pytest.raises(StoreUnavailableError, match=r"other\.txt cannot be opened"):
        JournalStore(str(path))
    assert path.read_text(encoding="utf-8") == "hello\n"
