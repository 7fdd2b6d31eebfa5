"""``lightning_core.reward`` is a decorator and a module, whichever was imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lightning_core.reward


@pytest.mark.parametrize(
    "imports",
    [
        "import lightning_core",
        "import lightning_core.reward",
        "from lightning_core import reward\nimport lightning_core.reward",
    ],
)
def test_reward_decorates_whatever_was_imported_before(imports: str) -> None:
    code = f"{imports}\nimport lightning_core\nprint(lightning_core.reward(lambda: 0.5)())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.5"


def test_the_module_still_has_the_reward_functions() -> None:
    assert lightning_core.reward.find_final_reward([]) is None
