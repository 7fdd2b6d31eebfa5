"""What travels to another process by value."""

from __future__ import annotations

import fnmatch
import functools
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_core.execution.pickling import pack


@pytest.fixture
def out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that is loaded here, and that no other process could import."""
    (tmp_path / "out_of_reach.py").write_text(
        "import functools\n\n"
        "@functools.lru_cache(maxsize=7, typed=True)\n"
        "def fibonacci(n):\n"
        "    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n\n"
        "def agent(n):\n"
        "    return fibonacci(n)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import out_of_reach as module  # pyright: ignore[reportMissingImports] - written above

    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    yield module
    sys.modules.pop("out_of_reach", None)


def test_a_function_under_lru_cache_goes_by_value_with_its_settings(out_of_reach: Any):
    """Whoever tidies a script with functools.cache must not find that its runners no longer start."""
    out_of_reach.fibonacci(5)
    packed = pack(out_of_reach.agent)
    agent: Any = out_of_reach.agent
    sys.modules.pop("out_of_reach")
    copy = packed.unpack()
    assert copy is not agent
    assert copy(30) == 832_040
    cached = copy.__globals__["fibonacci"]
    assert cached is not out_of_reach.fibonacci
    assert cached.cache_parameters() == {"maxsize": 7, "typed": True}
    # It calls itself through the cache: without that, the number above takes a million calls.
    assert cached.cache_info().misses < 100


def test_a_function_under_lru_cache_that_can_be_imported_stays_itself():
    cached: Any = getattr(fnmatch, "_compile_pattern")  # noqa: B009 - private
    assert pack(cached).unpack() is cached


def test_what_is_wrapped_in_a_hurry_goes_too():
    assert pack(functools.lru_cache(maxsize=None)(len)).unpack()("a") == 1
    assert pack(functools.cache(functools.partial(int, base=2))).unpack()("101") == 5
