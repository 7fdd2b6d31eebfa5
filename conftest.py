"""What holds for the tests of the core and of every plugin."""

from __future__ import annotations

import gc
import signal

from hypothesis import HealthCheck, settings

# The same examples every time, so that a failure can be seen again, and none fails for a busy machine.
settings.register_profile(
    "full",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# Where the same code is tried with other versions of what it uses; `nox -s tests` tries all examples.
settings.register_profile("brief", settings.get_profile("full"), max_examples=20)
settings.load_profile("full")

# A shell has what it runs in the background ignore Ctrl+C, which is inherited; some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was collected stays, and is much: the garbage collector, which many tests run, need not look at it again."""
    gc.collect()
    gc.freeze()
