"""Programs of Node.js and packages of npm, for tests."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

__all__ = ["beside_openai", "node"]

OPENAI = "openai@6.49.0"
INSTALL_SECONDS = 90
_FOLDER = Path(__file__).parents[3] / ".nox" / "node-packages" / OPENAI
_QUIETLY = (
    "--no-package-lock",
    "--no-save",
    "--no-audit",
    "--no-fund",
    "--ignore-scripts",
    "--fetch-retries=1",
)


def node() -> str:
    """The program ``node``; skips the test where there is none."""
    found = shutil.which("node")
    return found or pytest.skip("node is not installed, so JavaScript cannot be run")


def beside_openai(script: Path) -> list[str]:
    """The command that runs a script next to npm's ``openai``, which is installed once and kept."""
    program, npm = node(), shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, so its package openai cannot be")
    if not _FOLDER.exists():
        _install(npm)
    # A module is looked up from where the script is.
    return [program, shutil.copy(script, _FOLDER)]


def _install(npm: str) -> None:
    _FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_FOLDER.parent, ignore_cleanup_errors=True) as work:
        try:
            done = subprocess.run(
                [npm, "install", *_QUIETLY, "--prefix", work, OPENAI],
                cwd=work,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm could not install {OPENAI} within {INSTALL_SECONDS} s")
        if done.returncode:
            pytest.skip(f"npm could not install {OPENAI}: {done.stderr[-300:].strip()}")
        # Nobody finds half of it; somebody else may have been faster.
        with contextlib.suppress(OSError):
            Path(work).rename(_FOLDER)
