"""Fixtures of the whole suite: the small packages of tests/packages, really installed, and a model to call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import importlib_metadata
import pytest

from lightning_core.plugin import PluginManager, plugin_manager

PACKAGES = Path(__file__).parent / "packages"

# What an installer does for each of them, without starting several interpreters for each.
BUILD_ALL = """
import os, sys
from hatchling.build import build_wheel
for project in sys.argv[2:]:
    os.chdir(project)
    build_wheel(sys.argv[1])
"""


@pytest.fixture(scope="session")
def packages_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which every package of tests/packages is built and installed, without asking an index."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("packages")
    projects = sorted(str(path.parent) for path in PACKAGES.glob("*/pyproject.toml"))
    _run("-c", BUILD_ALL, str(wheels), *projects)
    offline = ("--quiet", "--offline", "--no-cache", "--no-deps", "--python", sys.executable)
    _run(
        "-m",
        "uv",
        "pip",
        "install",
        *offline,
        "--target",
        str(target),
        *sorted(map(str, wheels.glob("*.whl"))),
    )
    return target


def _run(*arguments: str) -> None:
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def _forget_test_packages() -> None:
    plugin_manager.cache_clear()
    for name in [name for name in sys.modules if name.startswith("lightning_test_")]:
        del sys.modules[name]


@pytest.fixture
def only_packages(packages_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginManager]:
    """A plugin manager that sees the packages of tests/packages, and no other installed plugin."""
    yield from _only(packages_folder, monkeypatch)


@pytest.fixture
def only_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginManager]:
    """A plugin manager that sees no installed plugin, save those announced in ``tmp_path``."""
    yield from _only(tmp_path, monkeypatch)


def _only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginManager]:
    _forget_test_packages()
    monkeypatch.delenv("LIGHTNING_CORE_DISABLE_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(
        "lightning_core.plugin.discovery.distributions",
        lambda: importlib_metadata.distributions(path=[str(folder)]),
    )
    yield plugin_manager()
    _forget_test_packages()


@pytest.fixture
def announce(tmp_path: Path) -> Callable[..., None]:
    """Writes the metadata of a distribution that announces entry points; there is no module behind them."""

    def write(distribution: str, *entries: str, version: str = "1.0.0") -> None:
        folder = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (folder / "METADATA").write_text(metadata, encoding="utf-8")
        points = "".join(f"{entry} = nowhere_to_be_found.plugin\n" for entry in entries)
        (folder / "entry_points.txt").write_text(f"[lightning_core]\n{points}", encoding="utf-8")

    return write


@pytest.fixture
def run_python(packages_folder: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a fresh interpreter that has the packages of tests/packages on its path."""

    def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("LIGHTNING_", "OTEL_"))
        }
        environment |= {"PYTHONPATH": str(packages_folder), **variables}
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


class OneAnswer(BaseHTTPRequestHandler):
    """Answers every chat completion with ``4``."""

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": "four", "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": "4"}
        self.answer(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )

    def answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def model_endpoint() -> Iterator[str]:
    """The base URL of a model that knows one answer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), OneAnswer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()
