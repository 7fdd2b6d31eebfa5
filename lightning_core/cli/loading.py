"""Agents and data that commands are told of by a path: imported, or read from a file."""

from __future__ import annotations

import csv
import difflib
import json
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

from lightning_core.errors import ConfigurationError, DatasetError
from lightning_core.litagent.agent import LitAgent

__all__ = ["import_from_here", "load_agent", "load_data", "load_object", "read_json_lines"]

_IMPORT_PATH: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def import_from_here() -> None:
    """Let modules of the working folder be imported, as for a script."""
    here = os.getcwd()  # noqa: PTH109 - the path holds strings
    if here not in sys.path:
        sys.path.insert(0, here)


def load_object(path: str) -> Any:
    """Import what ``module:name`` stands for.

    Raises:
        ConfigurationError: If it has another form, or cannot be imported.
    """
    if _IMPORT_PATH.fullmatch(path) is None:
        raise ConfigurationError(f"{path!r} is not of the form module:name")
    try:
        return pkgutil.resolve_name(path)
    except Exception as error:
        module, _, name = path.partition(":")
        close = difflib.get_close_matches(name, vars(sys.modules[module]), 1) if module in sys.modules else []
        hint = f"did you mean {module}:{close[0]}? C" if close else "c"
        raise ConfigurationError(
            f"{path!r} cannot be imported: {type(error).__name__}: {error}; {hint}heck the spelling, and that it can "
            "be found from here"
        ) from error


def load_agent(path: str) -> LitAgent[Any]:
    """Import an agent; of a class, an instance is made.

    Args:
        path: ``module:name``.

    Raises:
        ConfigurationError: If it cannot be imported, or is no agent.
    """
    found = load_object(path)
    agent: Any = found
    if isinstance(found, type) and issubclass(found, LitAgent):
        agent = cast("type[LitAgent[Any]]", found)()
    if not isinstance(agent, LitAgent):
        raise ConfigurationError(
            f"{path!r} is a {type(agent).__name__}, not an agent: put @rollout above the function, or subclass "
            "LitAgent"
        )
    return cast("LitAgent[Any]", agent)


def load_data(spec: Any) -> Any:
    """Load a dataset.

    Args:
        spec: The tasks themselves; a file of JSON Lines (``.jsonl``), JSON (``.json``), CSV (``.csv``, whose first
            line names the columns) or Parquet (``.parquet``); or ``module:name`` of a dataset, or of a function that
            makes one.

    Raises:
        DatasetError: If there is no such file, or it holds no list of tasks.
        ConfigurationError: If it cannot be imported.
    """
    if not isinstance(spec, str):
        return spec
    if Path(spec).suffix.lower() not in _READERS and _IMPORT_PATH.fullmatch(spec):
        found = load_object(spec)
        return found() if callable(found) and not hasattr(found, "__getitem__") else found
    path = Path(spec)
    if path.suffix.lower() not in _READERS:
        raise DatasetError(
            f"{spec!r} is neither a file of {', '.join(sorted(_READERS))}, nor module:name of a dataset"
        )
    try:
        return _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise DatasetError(f"{spec} cannot be read: {error.strerror or error}{_beside(path)}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{spec} is not encoded in UTF-8: {error}") from None


def read_json_lines(text: str, name: str) -> list[Any]:
    """Read JSON Lines; empty lines are left out.

    Raises:
        DatasetError: If a line is no JSON.
    """
    items: list[Any] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                items.append(json.loads(line))
            except ValueError as error:
                raise DatasetError(f"{name}, line {number}: it is no JSON: {error}") from None
    return items


def _json_lines(path: Path) -> list[Any]:
    return read_json_lines(path.read_text(encoding="utf-8-sig"), str(path))


def _json(path: Path) -> list[Any]:
    try:
        items: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise DatasetError(f"{path}: it is no JSON: {error}") from None
    if not isinstance(items, list):
        raise DatasetError(f"{path} holds a {type(items).__name__}; a dataset is a list of tasks")
    return cast("list[Any]", items)


def _csv(path: Path) -> list[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            items: list[Any] = list(rows)
        except csv.Error as error:
            raise DatasetError(f"{path}, line {rows.line_num}: {error}") from None
    for number, row in enumerate(items, 1):
        if None in row or None in row.values():
            raise DatasetError(
                f"{path}: record {number} has not as many values as the {len(rows.fieldnames or ())} columns that the "
                "first line names"
            )
    return items


def _parquet(path: Path) -> list[Any]:
    path.stat()
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise DatasetError(
            f"{path}: a Parquet file needs pyarrow. To get it: pip install 'lightning-core[parquet]'"
        ) from None
    try:
        return parquet.read_table(path).to_pylist()
    except arrow.ArrowException as error:
        raise DatasetError(f"{path} is no Parquet file: {error}") from None


_READERS: Final[Mapping[str, Callable[[Path], list[Any]]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}


def _beside(path: Path) -> str:
    """Name the file that may have been meant."""
    try:
        close = difflib.get_close_matches(path.name, [found.name for found in path.parent.iterdir()], 1)
    except OSError:
        return f"; there is no folder {path.parent}"
    return f"; did you mean {path.with_name(close[0])}?" if close else f" (looked for from {Path.cwd()})"
