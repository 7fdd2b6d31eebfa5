"""The training of examples/config-file runs as its file says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples" / "config-file"


def test_the_example_runs_from_its_folder(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "example", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "lightning_core", "run", "train.yaml", "--trainer.algorithm.n-epochs", "1"],
        cwd=tmp_path / "example",
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "rollouts   4 succeeded" in done.stdout
    assert "mode=train, epoch=0, rollouts=3, succeeded=3, spans=3, rewards=3, mean_reward=0.66" in done.stdout
