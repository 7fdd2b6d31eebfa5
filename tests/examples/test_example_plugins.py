"""The packages of examples/plugins, really installed: listed, selected by name, and checked by their own tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in (ROOT / "examples" / "plugins").glob("*/pyproject.toml"))
NAMES = {
    "lightning-hook-spending": "spending",
    "lightning-store-journal": "journal",
    "lightning-tracer-audit": "audit",
}

CLI = "from lightning_core.cli import main; main()"

# A whole run in which all three take part. Each rollout costs 2, and the limit is 3.
RUN = """
import asyncio, subprocess, sys
from lightning_core import LLM, Trainer, resolve, rollout
from lightning_core.emitter import emit_annotation

@rollout
def solve(task, llm):
    subprocess.run([sys.executable, "-c", "0"], check=True)
    emit_annotation({"gen_ai.usage.input_tokens": 2_000_000})
    return float(task)

if __name__ == "__main__":
    trainer = Trainer(
        tracer="audit",
        store="journal:///journal.jsonl",
        hooks=[{"type": "spending", "limit": 3.0, "input_price": 1.0, "output_price": 1.0}],
        algorithm="baseline",
        initial_resources={"llm": LLM(endpoint="http://127.0.0.1:1", model="none")},
    )
    result = trainer.fit(solve, [1, 2, 3, 4])
    asyncio.run(trainer.store.close())

    async def look():
        store = resolve("store", "journal:///journal.jsonl")
        rollouts = await store.query_rollouts()
        spans = [span for one in rollouts for span in await store.query_spans(one.rollout_id)]
        started = [span for span in spans if span.name == "subprocess.Popen"]
        print(sorted((one.input, one.status) for one in rollouts), len(started))
        await store.close()

    asyncio.run(look())
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("examples")
    options = ("--quiet", "--offline", "--no-deps", "--no-build-isolation", "--python", sys.executable)
    run(["-m", "uv", "pip", "install", *options, "--target", str(target), *map(str, PLUGINS)], ROOT)
    return target


def run(arguments: list[str], folder: Path, installed: Path | None = None) -> str:
    environment = {
        name: value
        for name, value in os.environ.items()
        # Where temporary files are is the same for all.
        if not name.startswith(("LIGHTNING_", "PYTEST_")) or name == "PYTEST_DEBUG_TEMPROOT"
    }
    if installed is not None:
        environment["PYTHONPATH"] = str(installed)
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_there_is_one_of_each_kind() -> None:
    assert {plugin.name: NAMES.get(plugin.name) for plugin in PLUGINS} == NAMES


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_it_is_less_than_sixty_lines(plugin: Path) -> None:
    sources = list((plugin / "src").rglob("*.py"))
    assert sum(len(source.read_text(encoding="utf-8").splitlines()) for source in sources) < 60


def test_they_are_listed(installed: Path, tmp_path: Path) -> None:
    listing = json.loads(run(["-c", CLI, "plugins", "--json"], tmp_path, installed))
    text = json.dumps(listing)
    for distribution, name in NAMES.items():
        assert distribution in text
        kind = distribution.split("-")[1]
        shown = run(["-c", CLI, "plugins", "show", f"{kind}.{name}"], tmp_path, installed)
        assert f"{distribution} 1.0.0" in shown


def test_they_are_selected_by_name_and_work_together(installed: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(RUN, encoding="utf-8")
    output = run([str(script)], tmp_path, installed)
    wanted = "[(1, 'succeeded'), (2, 'succeeded'), (3, 'cancelled'), (4, 'cancelled')] 2"
    assert output.splitlines()[-1] == wanted


@pytest.mark.timeout(330)
@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_it_passes_the_conformance_suites(
    plugin: Path, installed: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    tests = plugin / "tests"
    options = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    options += ["--hypothesis-profile", pytestconfig.getoption("--hypothesis-profile") or "full"]
    output = run(["-m", "pytest", *options, str(tests)], tmp_path, installed)
    assert "passed" in output
