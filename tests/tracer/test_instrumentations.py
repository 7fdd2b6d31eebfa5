"""Switching instrumentations on and off: counted, only when the library is imported, and exactly undone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.trace import NoOpTracerProvider

from lightning_core.errors import ConfigurationError, TraceError
from lightning_core.tracer.instrumentations import Instrumentation, Instrumentations, missing_package

PROVIDER = NoOpTracerProvider()


class Instrumentor:
    """Stands for one of OpenTelemetry's, of which there is one per class and process."""

    def __init__(self) -> None:
        self.is_instrumented_by_opentelemetry = False
        self.refuses = False
        self.calls: list[Any] = []

    def instrument(self, **options: Any) -> None:
        self.calls.append(options)
        self.is_instrumented_by_opentelemetry = not self.refuses

    def uninstrument(self) -> None:
        self.calls.append("off")
        self.is_instrumented_by_opentelemetry = False

    def instrumentation_dependencies(self) -> list[str]:
        return ["acme >= 999"]


class Parts:
    """Instrumentations of three made-up libraries, of which `acme_gone` is not installed."""

    def __init__(self) -> None:
        self.instrumentor = Instrumentor()
        self.late = Instrumentor()
        self.made_late = 0
        self.meanwhile: Callable[[], object] = lambda: None
        self.waiting: list[tuple[Callable[[Any], object], str]] = []
        self.parts = Instrumentations(
            "tracer 'acme'",
            [
                Instrumentation("acme", self.make, "acme_sdk"),
                Instrumentation("late", self.make_late, "acme_late"),
                Instrumentation("gone", Instrumentor, "acme_gone", lambda: "acme_gone is not installed"),
            ],
            when_imported=lambda hook, name: self.waiting.append((hook, name)),
            others=lambda: [Instrumentation("other", lambda: self.late)],
        )

    def make(self) -> Instrumentor:
        self.meanwhile()
        return self.instrumentor

    def make_late(self) -> Instrumentor:
        self.made_late += 1
        return self.late

    def import_late(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "acme_late", ModuleType("acme_late"))
        for hook, name in self.waiting:
            assert name == "acme_late"
            hook(sys.modules[name])


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setitem(sys.modules, "acme_sdk", ModuleType("acme_sdk"))
    return Parts()


ON = {"tracer_provider": PROVIDER}


def test_the_last_of_several_users_switches_it_off(acme):
    assert acme.parts.start(["acme"], PROVIDER, strict=True) == {}
    assert acme.parts.start(["acme"], PROVIDER, strict=True) == {}
    acme.parts.stop(["acme"])
    assert acme.instrumentor.calls == [ON]
    assert acme.parts.is_used("acme")
    acme.parts.stop(["acme"])
    assert acme.instrumentor.calls == [ON, "off"]
    assert not acme.parts.is_used("acme")
    acme.parts.start(["acme"], PROVIDER, strict=True)
    assert acme.instrumentor.calls == [ON, "off", ON]


def test_many_threads_instrument_it_once(acme):
    together = threading.Barrier(8, timeout=60)

    def use(number: int) -> None:
        for _ in range(20):
            together.wait()
            acme.parts.start(["acme"], PROVIDER, strict=True)
            together.wait()
            acme.parts.stop(["acme"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert acme.instrumentor.calls == [ON, "off"] * 20


def test_a_library_is_instrumented_when_the_program_imports_it(acme, monkeypatch):
    acme.parts.start(["late"], PROVIDER, strict=True)
    assert acme.late.calls == []
    acme.import_late(monkeypatch)
    assert acme.late.calls == [ON]


def test_a_library_that_is_imported_after_the_end_is_left_alone(acme, monkeypatch):
    acme.parts.start(["late"], PROVIDER, strict=True)
    acme.parts.stop(["late"])
    acme.import_late(monkeypatch)
    assert (acme.late.calls, acme.made_late) == ([], 0)


def test_a_library_that_nobody_uses_any_more_when_its_instrumentor_is_ready_is_left_alone(acme):
    acme.meanwhile = lambda: acme.parts.stop(["acme"])
    acme.parts.start(["acme"], PROVIDER, strict=True)
    assert acme.instrumentor.calls == []


def test_what_announces_itself_is_switched_on_at_once(acme):
    acme.parts.start(["other"], PROVIDER, strict=True)
    assert acme.late.calls == [ON]
    acme.parts.stop(["other"])
    assert acme.late.calls == [ON, "off"]


def test_one_that_refuses_is_an_error_or_a_warning(acme, caplog):
    acme.instrumentor.refuses = True
    with pytest.raises(TraceError, match=r"tracer 'acme' has for 'acme' refuses .* acme >= 999"):
        acme.parts.start(["acme"], PROVIDER, strict=True)
    [why] = acme.parts.start(["acme"], PROVIDER, strict=False).values()
    assert why in caplog.text
    acme.parts.stop(["acme", "acme"])
    assert "off" not in acme.instrumentor.calls


def test_what_the_program_instruments_itself_stays_as_it_is(acme):
    acme.instrumentor.instrument(by="the program")
    assert acme.parts.start(["acme"], PROVIDER, strict=True) == {
        "acme": "the program instruments it itself, and it stays so"
    }
    acme.parts.stop(["acme"])
    assert acme.instrumentor.calls == [{"by": "the program"}]
    assert acme.instrumentor.is_instrumented_by_opentelemetry


def test_what_the_program_takes_away_meanwhile_is_not_taken_away_twice(acme):
    acme.parts.start(["acme"], PROVIDER, strict=True)
    acme.instrumentor.uninstrument()
    acme.parts.stop(["acme"])
    assert acme.instrumentor.calls == [ON, "off"]


def test_names_are_checked(acme):
    acme.parts.check(["acme", "late", "other"])
    with pytest.raises(
        ConfigurationError, match="cannot instrument 'gone', since acme_gone is not installed"
    ):
        acme.parts.check(["acme", "gone"])
    with pytest.raises(ConfigurationError) as error:
        acme.parts.check(["acmee"])
    assert str(error.value) == (
        "tracer 'acme' cannot instrument 'acmee': no instrumentation of that name is installed; "
        "did you mean 'acme'? There are: acme, gone, late, other"
    )
    assert acme.parts.find_installed() == ["acme", "late"]
    assert acme.parts.find_unused(["acme", "late", "other"]) == ["late"]


def test_a_missing_package_is_said_with_the_way_to_get_it():
    assert missing_package(["pluggy", "pydantic"], "acme") is None
    assert missing_package(["pluggy", "no-such-thing"], "'acme[all]'") == (
        "no-such-thing is not installed. To get it: pip install 'acme[all]'"
    )
