"""What the tests of command lines share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lightning_core.config import lightning_cli

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def classes() -> Iterator[ModuleType]:
    """The classes, in a module that can be imported by its name."""
    spec = importlib.util.spec_from_file_location("cli_classes", Path(__file__).with_name("classes.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cli_classes"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["cli_classes"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs ``lightning_cli`` as a script with arguments would, in ``tmp_path``."""
    for name in ("LIGHTNING_CORE_STORE", "LIGHTNING_CORE_CONFIG", "LIGHTNING_CORE_RESUME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(classes: Any, *arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", *arguments])
        return lightning_cli(*classes) if isinstance(classes, tuple) else lightning_cli(classes)

    return run


@pytest.fixture
def refused(run: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Returns the one message with which a command line is refused."""

    def refused(classes: Any, *arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            run(classes, *arguments)
        assert exit_.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = printed.err.splitlines()
        assert len(lines) == 1, printed.err
        return lines[0].removeprefix("train.py: error: ")

    return refused


@pytest.fixture
def printed(run: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Returns what a command line prints that makes nothing."""

    def printed(classes: Any, *arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            run(classes, *arguments)
        assert exit_.value.code == 0
        return capsys.readouterr().out

    return printed
