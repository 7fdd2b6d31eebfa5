"""Processes that were left behind are found by their notes, and nothing else is ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lightning_core import Trainer
from lightning_core.execution import orphans

pytestmark = pytest.mark.skipif(os.name == "nt", reason="ends processes with signals")

SPACE = str(Path("/proc/self/ns/pid").readlink()) if Path("/proc/self/ns/pid").exists() else ""
WAITING = "print('ready', flush=True); import threading; threading.Event().wait(120)"
PARENT = f"""
import subprocess, sys, threading
from lightning_core.execution.orphans import note_start
child = subprocess.Popen([sys.executable, "-c", {WAITING!r}], stdout=subprocess.PIPE)
child.stdout.readline()
note_start(child.pid)
print(child.pid, flush=True)
threading.Event().wait(120)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the notes of these tests are, apart from those of real runs."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = tmp_path / f"lightning-core-{os.getuid()}"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    """Ends what a test has started."""
    with ExitStack() as stack:
        yield stack


def start(processes: ExitStack, code: str) -> tuple[subprocess.Popen[str], str]:
    """A process, and the first line that it has written."""
    process = processes.enter_context(
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    )
    processes.callback(process.kill)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_an_orphan_is_ended_and_a_child_of_a_living_process_is_not(processes: ExitStack):
    bystander, _ = start(processes, WAITING)
    parent, number = start(processes, PARENT)
    pid = int(number)
    mark = orphans.start_mark(pid)
    assert orphans.end_orphans() == []
    assert orphans.is_alive(pid, mark)
    parent.kill()
    parent.wait(30)
    assert orphans.is_alive(pid, mark)
    assert orphans.end_orphans() == [pid]
    assert not orphans.is_alive(pid, mark)
    assert bystander.poll() is None


def test_the_trainer_ends_orphans(processes: ExitStack):
    parent, number = start(processes, PARENT)
    mark = orphans.start_mark(int(number))
    parent.kill()
    parent.wait(30)
    Trainer.kill_orphaned_processes()
    assert not orphans.is_alive(int(number), mark)


def test_a_process_that_has_the_number_of_an_ended_one_is_let_be(processes: ExitStack, folder: Path):
    process, _ = start(processes, WAITING)
    note = folder / f"{process.pid}.json"
    text = {
        "pid": process.pid,
        "mark": "of another",
        "parent": 999_999_999,
        "parent_mark": "1",
        "space": SPACE,
    }
    note.write_text(json.dumps(text), encoding="utf-8")
    assert orphans.end_orphans() == []
    assert process.poll() is None
    assert not note.exists()


def test_notes_that_others_could_have_written_are_not_read(
    processes: ExitStack, folder: Path, caplog: pytest.LogCaptureFixture
):
    process, _ = start(processes, WAITING)
    mark = orphans.start_mark(process.pid)
    text = {"pid": process.pid, "mark": mark, "parent": 999_999_999, "parent_mark": "1", "space": SPACE}
    (folder / "note.json").write_text(json.dumps(text), encoding="utf-8")
    folder.chmod(0o777)
    assert orphans.end_orphans() == []
    assert process.poll() is None
    assert "is not this user's alone" in caplog.text
    folder.chmod(0o700)
    assert orphans.end_orphans() == [process.pid]


def test_a_note_of_another_container_is_let_be(processes: ExitStack, folder: Path):
    process, _ = start(processes, WAITING)
    mark = orphans.start_mark(process.pid)
    text = {"pid": process.pid, "mark": mark, "parent": 999_999_999, "parent_mark": "1", "space": "pid:[1]"}
    note = folder / "note.json"
    note.write_text(json.dumps(text), encoding="utf-8")
    assert orphans.end_orphans() == []
    assert process.poll() is None
    assert note.exists()


def test_a_note_goes_with_its_process(processes: ExitStack, folder: Path):
    process, _ = start(processes, WAITING)
    orphans.note_start(process.pid)
    assert [path.name for path in folder.iterdir()] == [f"{process.pid}.json"]
    orphans.note_end(process.pid)
    assert list(folder.iterdir()) == []


def test_notes_of_processes_that_have_ended_go_with_the_next_one(processes: ExitStack, folder: Path):
    parent, number = start(processes, PARENT)
    ended, living = int(number), start(processes, WAITING)[0].pid
    mark = orphans.start_mark(ended)
    orphans.note_start(living)
    assert sorted(path.name for path in folder.iterdir()) == sorted([f"{ended}.json", f"{living}.json"])
    parent.kill()
    parent.wait(30)
    assert orphans.end_orphans() == [ended]
    # As after the end of an orphan that nobody has ended.
    text = {"pid": ended, "mark": mark, "parent": parent.pid, "parent_mark": "1", "space": SPACE}
    (folder / f"{ended}.json").write_text(json.dumps(text), encoding="utf-8")
    another = start(processes, WAITING)[0].pid
    orphans.note_start(another)
    assert sorted(path.name for path in folder.iterdir()) == sorted([f"{living}.json", f"{another}.json"])


def test_a_note_that_is_none_is_removed(folder: Path):
    (folder / "1.json").write_text("{", encoding="utf-8")
    assert orphans.end_orphans() == []
    assert list(folder.iterdir()) == []


def test_there_is_no_process_of_that_number():
    assert orphans.start_mark(999_999_999) is None
    assert not orphans.is_alive(999_999_999, None)
