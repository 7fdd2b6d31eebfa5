"""The conformance kit, on the progress hook."""

import io
from collections.abc import Callable

import pytest
from lightning_hook_progress import ProgressHook

from lightning_core.testing import HookConformance, PluginPackageConformance


class TestPackage(PluginPackageConformance):
    distribution = "lightning-hook-progress"


@pytest.mark.parametrize("terminal", [False, True])
class TestProgressHook(HookConformance):
    @pytest.fixture
    def make_hook(self, terminal: bool) -> Callable[[], ProgressHook]:
        return lambda: ProgressHook(interval=0.0, terminal=terminal, stream=io.StringIO())
