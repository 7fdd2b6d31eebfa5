"""Agents and data that commands are told of by a path."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_core.cli.loading import load_data, load_object
from lightning_core.errors import ConfigurationError, DatasetError

TASKS = [{"a": "1", "b": "x"}, {"a": "2", "b": "line\u2028separator"}]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_data.py").write_text(
        "tasks = [1, 2]\n\ndef make():\n    return (3, 4)\n\nclass Deep:\n    tasks = [5]\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_data", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tasks.jsonl", '{"a": "1", "b": "x"}\n\n{"a": "2", "b": "line\u2028separator"}\n'),
        ("tasks.json", '[{"a": "1", "b": "x"}, {"a": "2", "b": "line\u2028separator"}]'),
        ("tasks.csv", 'a,b\r\n1,x\r\n2,"line\u2028separator"\r\n'),
        ("TASKS.CSV", "\ufeffa,b\n1,x\n2,line\u2028separator\n"),
    ],
)
def test_files_of_every_format_hold_the_same_tasks(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    assert load_data(name) == TASKS


def test_a_parquet_file_is_read(folder: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(TASKS), folder / "tasks.parquet")
    assert load_data("tasks.parquet") == TASKS
    (folder / "broken.parquet").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"broken.parquet is no Parquet file: "):
        load_data("broken.parquet")


def test_a_parquet_file_without_pyarrow_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (folder / "tasks.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"pip install 'lightning-core\[parquet\]'"):
        load_data("tasks.parquet")


@pytest.mark.parametrize(
    ("spec", "tasks"),
    [
        ("my_data:tasks", [1, 2]),
        ("my_data:make", (3, 4)),
        ("my_data:Deep.tasks", [5]),
        ([6, 7], [6, 7]),
        (None, None),
    ],
)
def test_data_may_be_imported_or_be_the_tasks_themselves(spec: Any, tasks: Any) -> None:
    assert load_data(spec) == tasks


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "a.jsonl, line 3: it is no JSON"),
        ("a.json", '{"a": 1}', "a.json holds a dict; a dataset is a list of tasks"),
        ("a.json", "[1", "a.json: it is no JSON"),
        ("a.csv", "a,b\n1\n", "a.csv: record 1 has not as many values as the 2 columns"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "a.csv: record 2 has not as many values as the 2 columns"),
        ("a.csv", 'a\n"1', r"a.csv, line \d: unexpected end of data"),
        ("a.jsonl", "\udcff", "a.jsonl is not encoded in UTF-8"),
        ("a.json", "\udcff", "a.json is not encoded in UTF-8"),
    ],
)
def test_a_file_that_holds_no_tasks_is_named_with_the_place(
    folder: Path, name: str, text: str, message: str
) -> None:
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError, match=message):
        load_data(name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("taks.jsonl", r"taks.jsonl cannot be read: No such file or directory; did you mean tasks.jsonl\?"),
        ("nowhere/a.csv", "nowhere/a.csv cannot be read: .*; there is no folder nowhere"),
        ("tasks.txt", "'tasks.txt' is neither a file of .csv, .json, .jsonl, .parquet, nor module:name of a dataset"),
        ("other", "'other' is neither a file of"),
    ],
)  # fmt: skip
def test_data_that_are_not_there(folder: Path, spec: str, message: str) -> None:
    (folder / "tasks.jsonl").write_text("1\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=message):
        load_data(spec)


def test_a_misspelt_name_of_a_module_is_corrected() -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean my_data:tasks\? Check the spelling"):
        load_object("my_data:task")
    with pytest.raises(ConfigurationError, match="'my_data' is not of the form module:name"):
        load_object("my_data")
