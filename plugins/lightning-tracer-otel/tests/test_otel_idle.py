"""The tracer says which of the libraries that it was told to instrument the program does not use."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from lightning_tracer_otel import OtelTracer
tracer, told = OtelTracer(), OtelTracer(instrument=["openai", "langchain"])
print(tracer.idle_settings())
print(told.idle_settings())
import openai
print(told.idle_settings())
"""


def test_libraries_that_are_not_imported_are_named_if_they_were_chosen() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    unused = "tracer.instrument names {!r}, which the program has not imported"
    both = [unused.format("openai"), unused.format("langchain")]
    assert result.stdout.splitlines() == ["[]", str(both), str(both[1:])]
