"""`instrument_all`: what installed plugins can instrument, each library by one of them, and all undone again."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from lightning_core import Component, emit_reward, hookimpl
from lightning_core.instrumentation import InstrumentationReport, instrument_all, uninstrument_all
from lightning_core.plugin import PluginManager
from lightning_core.tracer import DummyTracer
from lightning_core.tracer.instrumentations import Instrumentation, Instrumentations


class Instrumentor:
    """Stands for one of OpenTelemetry's, and makes a span when it is asked to."""

    def __init__(self) -> None:
        self.is_instrumented_by_opentelemetry = False
        self.provider: TracerProvider | None = None
        self.times = 0

    def instrument(self, tracer_provider: TracerProvider) -> None:
        self.is_instrumented_by_opentelemetry, self.provider = True, tracer_provider
        self.times += 1

    def uninstrument(self) -> None:
        self.is_instrumented_by_opentelemetry = False

    def call(self) -> None:
        assert self.provider is not None
        self.provider.get_tracer("acme").start_span("acme.call").end()


class Plugins:
    """Makes plugins: tracers that lend what the hook returns to `instrument_all`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self.otel, self.zeta = Instrumentor(), Instrumentor()
        monkeypatch.setitem(sys.modules, "acme_sdk", ModuleType("acme_sdk"))

    def install(self, name: str, returned: object) -> None:
        metadata = self._folder / f"lightning_tracer_{name}-1.0.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: lightning-tracer-{name}\nVersion: 1.0.0\n", encoding="utf-8"
        )
        (metadata / "entry_points.txt").write_text(
            f"[lightning_core]\ntracer.{name} = acme_{name}\n", encoding="utf-8"
        )
        module = ModuleType(f"acme_{name}")

        @hookimpl
        def lightning_tracers() -> list[Component[Any]]:
            return [Component(name, DummyTracer)]

        @hookimpl
        def lightning_instrumentations() -> object:
            if isinstance(returned, Exception):
                raise returned
            return returned

        vars(module).update(
            lightning_tracers=lightning_tracers, lightning_instrumentations=lightning_instrumentations
        )
        self._monkeypatch.setitem(sys.modules, module.__name__, module)

    def make(self, owner: str, *known: Instrumentation) -> Instrumentations:
        return Instrumentations(f"tracer {owner!r}", known, when_imported=lambda hook, module: None)

    def install_both(self) -> tuple[Instrumentations, Instrumentations]:
        """Two that know `acme_sdk`, under different names; `zeta` knows one that is not installed, too."""
        gone = Instrumentation("gone", Instrumentor, "gone", lambda: "gone is not installed")
        zeta = self.make("zeta", Instrumentation("acme_sdk", lambda: self.zeta, "acme_sdk"), gone)
        otel = self.make("otel", Instrumentation("acme", lambda: self.otel, "acme_sdk"))
        self.install("zeta", zeta)
        self.install("otel", otel)
        return otel, zeta


@pytest.fixture
def plugins(only_core: PluginManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    plugins = Plugins(tmp_path, monkeypatch)
    yield plugins
    uninstrument_all()
    assert not plugins.otel.is_instrumented_by_opentelemetry
    assert not plugins.zeta.is_instrumented_by_opentelemetry


def test_a_library_that_several_know_is_instrumented_by_one_and_what_is_missing_is_said(plugins, caplog):
    plugins.install_both()
    with caplog.at_level(logging.INFO, "lightning_core.instrumentation"):
        report = instrument_all()
    assert report.on == {"acme": "tracer 'otel'"}
    assert report.off == {"gone": "gone is not installed"}
    assert str(report) == (
        "acme: instrumented by tracer 'otel'\ngone: not instrumented, since gone is not installed"
    )
    assert str(report) in caplog.text
    assert (plugins.otel.times, plugins.zeta.times) == (1, 0)


def test_calls_belong_to_the_trace_around_them_whichever_tracer_opened_it(plugins):
    plugins.install_both()
    instrument_all()
    tracer = DummyTracer()
    with tracer.trace_context() as trace:
        plugins.otel.call()
        emit_reward(1.0)
    plugins.otel.call()
    assert len(trace.spans) == 2
    assert trace.spans[0].name == "acme.call"


def test_it_is_done_once_however_often_it_is_asked_for_and_undone_at_once(plugins):
    plugins.install_both()
    assert instrument_all() == instrument_all()
    assert plugins.otel.times == 1
    uninstrument_all()
    assert not plugins.otel.is_instrumented_by_opentelemetry
    uninstrument_all()
    instrument_all()
    assert (plugins.otel.times, plugins.otel.is_instrumented_by_opentelemetry) == (2, True)


def test_what_is_installed_meanwhile_is_instrumented_by_the_next_call(plugins):
    waits = ["acme is not installed. To get it: pip install acme"]
    known = Instrumentation("acme", lambda: plugins.otel, "acme_sdk", lambda: waits[0] if waits else None)
    plugins.install("otel", plugins.make("otel", known))
    assert instrument_all() == InstrumentationReport(off={"acme": waits[0]})
    waits.clear()
    assert instrument_all() == InstrumentationReport(on={"acme": "tracer 'otel'"})


def test_the_plugin_that_instruments_a_library_already_goes_on(plugins):
    _, zeta = plugins.install_both()
    zeta.start(["acme_sdk"], TracerProvider(shutdown_on_exit=False), strict=True)
    assert instrument_all().on == {"acme": "tracer 'zeta'"}
    assert plugins.otel.times == 0
    uninstrument_all()
    assert plugins.zeta.is_instrumented_by_opentelemetry
    zeta.stop(["acme_sdk"])


def test_the_second_is_taken_where_the_first_cannot(plugins):
    otel = plugins.make("otel", Instrumentation("acme", Instrumentor, "acme_sdk", lambda: "acme is missing"))
    zeta = plugins.make("zeta", Instrumentation("acme_sdk", lambda: plugins.zeta, "acme_sdk"))
    plugins.install("otel", otel)
    plugins.install("zeta", zeta)
    assert instrument_all() == InstrumentationReport(on={"acme": "tracer 'zeta'"})
    assert plugins.zeta.times == 1


def test_what_the_program_instruments_itself_stays_as_it_is(plugins):
    otel, _ = plugins.install_both()
    provider = TracerProvider(shutdown_on_exit=False)
    plugins.otel.instrument(provider)
    report = instrument_all()
    assert not otel.is_used("acme")
    assert report.off["acme"] == "the program instruments it itself, and it stays so"
    uninstrument_all()
    assert (plugins.otel.provider, plugins.otel.is_instrumented_by_opentelemetry) == (provider, True)
    assert plugins.zeta.times == 0
    plugins.otel.uninstrument()


def test_a_broken_plugin_is_named_and_breaks_no_other(plugins):
    plugins.install_both()
    plugins.install("broken", RuntimeError("out of order"))
    plugins.install("wrong", "text")
    report = instrument_all()
    assert report.on == {"acme": "tracer 'otel'"}
    assert report.off["tracer.broken"] == ("lightning-tracer-broken 1.0.0 cannot be asked: out of order")
    assert report.off["tracer.wrong"] == (
        "lightning-tracer-wrong 1.0.0 cannot be asked: lightning_instrumentations returned a str"
    )


def test_a_disabled_plugin_is_not_asked(plugins, monkeypatch):
    plugins.install_both()
    monkeypatch.setenv("LIGHTNING_CORE_DISABLE_PLUGINS", "tracer.otel")
    assert instrument_all().on == {"acme_sdk": "tracer 'zeta'"}


def test_without_any_plugin_it_says_what_to_install(plugins):
    assert str(instrument_all()).endswith("To get one: pip install lightning-tracer-otel")
    uninstrument_all()
