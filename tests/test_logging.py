"""`configure_logger`: one handler, however often, with the time, level, process and name; nothing by itself."""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_core.errors import ConfigurationError
from lightning_core.execution.spawning import LogSettings
from lightning_core.logging import configure_logger, configured_level

STORE = "lightning_store_http"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leaves all loggers as they were."""
    configure_logger()
    loggers = [
        each
        for each in map(logging.getLogger, logging.root.manager.loggerDict)
        if each.name.startswith("lightning_")
    ]
    for logger in loggers:
        _clear(logger)
    yield
    for logger in loggers:
        _clear(logger)


def _clear(logger: logging.Logger) -> None:
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def test_a_line_has_the_time_level_process_and_name(capsys):
    logger = configure_logger()
    assert logger is logging.getLogger("lightning_core")
    logging.getLogger("lightning_core.runner.agent").info("hello %s", "there")
    logging.getLogger("lightning_core.runner.agent").debug("not shown")
    assert re.fullmatch(
        rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d,\d{{3}} \[INFO\] \(Process-{os.getpid()} "
        r"lightning_core\.runner\.agent\)   hello there\n",
        capsys.readouterr().err,
    )


def test_it_writes_each_line_once_however_often_it_is_called(capsys, monkeypatch):
    root = io.StringIO()
    handler = logging.StreamHandler(root)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    configure_logger()
    configure_logger(logging.DEBUG)
    logging.getLogger("lightning_core").debug("once")
    assert capsys.readouterr().err.count("once") == 1
    assert root.getvalue() == ""


def test_the_handlers_of_others_stay():
    theirs = logging.NullHandler()
    logging.getLogger("lightning_core").addHandler(theirs)
    configure_logger()
    configure_logger()
    handlers = logging.getLogger("lightning_core").handlers
    assert theirs in handlers
    assert len(handlers) == 2


def test_the_loggers_of_this_projects_plugins_go_with_that_of_the_core(capsys):
    configure_logger("warning")
    logging.getLogger(f"{STORE}.server").info("not shown")
    logging.getLogger(f"{STORE}.server").warning("shown")
    assert [line.rsplit("   ", 1)[1] for line in capsys.readouterr().err.splitlines()] == ["shown"]


def test_another_logger_is_configured_alone(capsys):
    logger = configure_logger(logging.DEBUG, name="my_agents")
    try:
        logger.debug("mine")
        logging.getLogger("lightning_core").error("not shown here")
        [line] = capsys.readouterr().err.splitlines()
        assert "my_agents)   mine" in line
        assert logging.getLogger("lightning_core").handlers == []
    finally:
        _clear(logger)


@pytest.mark.parametrize("level", ["INFOO", "", None, 1.5, True])
def test_a_wrong_level_is_refused_before_anything_changes(level):
    with pytest.raises(ConfigurationError, match=r"level=.*there is no such level; .*There are: .*DEBUG"):
        configure_logger(level)
    assert logging.getLogger("lightning_core").handlers == []


def test_a_wrong_level_gets_the_nearest():
    with pytest.raises(ValueError, match=r"configure_logger\(level='warnin'\).*did you mean 'WARNING'\?"):
        configure_logger("warnin")


def test_the_level_that_was_set_is_known_to_who_starts_processes():
    assert configured_level() is None
    configure_logger("DEBUG")
    assert configured_level() == logging.DEBUG


def test_nothing_is_configured_by_an_import():
    code = (
        "import logging, lightning_core, lightning_core.logging, lightning_core.trainer\n"
        "import lightning_core.store.memory, lightning_core.instrumentation\n"
        "names = [name for name in logging.root.manager.loggerDict if name.startswith('lightning_')]\n"
        "assert names\n"
        "loggers = [logging.root, *map(logging.getLogger, names)]\n"
        "print([each.name for each in loggers if each.handlers or each.level not in (0, 30)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CHILD = """
import logging, pickle, sys
pickle.load(sys.stdin.buffer).apply()
logging.getLogger("lightning_core.runner").debug("seen in the process")
logging.getLogger("elsewhere").warning("by another library")
"""


def test_a_process_that_is_started_for_the_program_logs_as_the_program_does(monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    configure_logger("DEBUG")
    settings = pickle.dumps(LogSettings.of_this_process())
    done = subprocess.run([sys.executable, "-c", CHILD], input=settings, capture_output=True, check=True)
    [line, other] = done.stderr.decode().splitlines()
    assert line.endswith("lightning_core.runner)   seen in the process")
    assert "[DEBUG] (Process-" in line
    # As Python itself shows warnings of who has configured nothing.
    assert other == "by another library"


PLUGINS = sorted(
    path.parent.name for path in (Path(__file__).parents[1] / "plugins").glob("*/pyproject.toml")
)


@pytest.mark.parametrize("distribution", PLUGINS)
def test_no_plugin_of_this_project_is_forgotten(distribution):
    configure_logger()
    logger = logging.getLogger(distribution.replace("-", "_"))
    assert [type(handler).__module__ for handler in logger.handlers] == ["lightning_core.logging"]
