"""Every Python example of the documentation runs, and prints what the page says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if "```python" in path.read_text() and "_build" not in path.parts
)
SKIPPED = 77


def run_page(page: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "run_page.py"), str(page), str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )


@pytest.mark.timeout(330)
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_examples_of_page_run(page: Path, model_endpoint: str, tmp_path: Path) -> None:
    done = run_page(page, tmp_path, OPENAI_BASE_URL=model_endpoint, OPENAI_API_KEY="none")
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "page.md"


def test_failing_example_fails_with_the_line_of_the_page(page: Path, tmp_path: Path) -> None:
    page.write_text("# Title\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    done = run_page(page, tmp_path)
    assert done.returncode == 1
    assert 'page.md", line 8' in done.stderr


def test_wrong_output_fails(page: Path, tmp_path: Path) -> None:
    page.write_text("```python\nprint(1)\n```\n\n<!-- output -->\n```text\n2\n```\n")
    done = run_page(page, tmp_path)
    assert done.returncode == 1
    assert "but it prints\n1" in done.stderr


def test_illustration_is_not_run(page: Path, tmp_path: Path) -> None:
    page.write_text("<!-- illustration: it would fail -->\n```python\nraise SystemExit(3)\n```\n")
    assert run_page(page, tmp_path).returncode == 0


def test_illustration_without_a_reason_is_refused(page: Path, tmp_path: Path) -> None:
    page.write_text("<!-- illustration: -->\n```python\nx = 1\n```\n")
    done = run_page(page, tmp_path)
    assert done.returncode == 1
    assert "says nothing" in done.stderr


def test_block_whose_needs_are_missing_is_reported(page: Path, tmp_path: Path) -> None:
    page.write_text("<!-- needs: no_such_module -->\n```python\nimport no_such_module\n```\n")
    done = run_page(page, tmp_path)
    assert done.returncode == SKIPPED
    assert "line 3 needs no_such_module" in done.stderr


def test_files_of_a_page_are_installed_and_its_tests_run(page: Path, tmp_path: Path) -> None:
    page.write_text(
        "<!-- file: pyproject.toml -->\n```toml\n[project]\nname = 'told-tale'\nversion = '1.2'\n```\n"
        "<!-- file: src/told_tale.py -->\n```python\nanswer = 42\n```\n"
        "```python\nimport told_tale\nfrom importlib.metadata import version\n"
        "assert version('told-tale') == '1.2'\n```\n"
        "<!-- file: tests/test_tale.py -->\n```python\nimport told_tale\n\n"
        "def test_answer():\n    assert told_tale.answer == 41\n```\n"
    )
    done = run_page(page, tmp_path)
    assert done.returncode == 1
    assert "assert 42 == 41" in done.stdout
