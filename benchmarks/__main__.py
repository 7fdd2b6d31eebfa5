"""Runs the benchmarks: ``python -m benchmarks [--full] [NAME ...]``."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = [
    "imports",
    "store",
    "sqlite",
    "postgres",
    "spans",
    "capture",
    "runner",
    "loop",
    "adapter",
    "http",
    "proxy",
]

# Not among all of them: it takes an hour.
ON_DEMAND = ["exact"]


def main() -> None:
    """Run the named benchmarks, or all."""
    chosen = [name for name in sys.argv[1:] if not name.startswith("-")] or NAMES
    unknown = [name for name in chosen if name not in NAMES + ON_DEMAND]
    if unknown:
        raise SystemExit(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(NAMES + ON_DEMAND)}")
    for name in chosen:
        module = import_module(f"benchmarks.{name}")
        print(f"\n## {name}: {(module.__doc__ or '').strip().splitlines()[0]}\n", flush=True)
        try:
            module.main()
        except ImportError as error:
            print(f"not measured: {error}")


if __name__ == "__main__":
    main()
