"""``lightning-core doctor`` finds what is wrong, says how to put it right, and fails only then."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lightning_core.cli import doctor as doctor_command
from lightning_core.cli import main
from lightning_core.cli.doctor import find_strangers, telemetry
from lightning_core.plugin import PluginManager


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def run() -> Result:
    return CliRunner().invoke(main, ["doctor"])


def test_sound_installation_passes(only_core: PluginManager) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().endswith("nothing is wrong")
    assert "problem" not in result.output


def test_defaults_of_the_trainer_are_printed_by_name(
    only_core: PluginManager,
) -> None:
    output = run().output
    assert "tracer: dummy (otel is not installed: pip install lightning-tracer-otel)" in output
    assert "store: memory" in output
    assert "runner: agent" in output
    assert "strategy: shared-memory" in output
    assert "adapter: none (triplet is not installed: pip install lightning-adapter-triplet" in output
    assert "algorithm: none" in output
    assert "hooks: none" in output


def test_default_that_is_disabled_is_said_to_be(
    only_core: PluginManager, announce: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    announce("lightning-tracer-otel", "tracer.otel")
    monkeypatch.setenv("LIGHTNING_CORE_DISABLE_PLUGINS", "tracer.otel")
    only_core.refresh()
    assert "tracer: dummy (otel is disabled by tracer.otel)" in run().output


def test_every_broken_plugin_is_a_problem_with_a_fix(only_packages: PluginManager) -> None:
    result = run()
    assert result.exit_code == 1
    lines = result.output.splitlines()
    for distribution in ("broken-import", "wrong-api", "unsatisfied-core", "twin-two", "misspelled-kind"):
        found = [number for number, line in enumerate(lines) if f"lightning-test-{distribution}" in line]
        assert lines[found[0]].lstrip().startswith("problem:")
        assert lines[found[0] + 1].lstrip().startswith("fix:")
    assert "ok:      tracer.good of lightning-test-good 1.0.0" in result.output


def test_pattern_that_matches_nothing_is_noted_and_no_problem(
    only_core: PluginManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_CORE_DISABLE_PLUGINS", "tracer.elsewhere")
    result = run()
    assert result.exit_code == 0
    assert (
        "'tracer.elsewhere' in LIGHTNING_CORE_DISABLE_PLUGINS matches nothing that is installed"
        in result.output
    )


def test_nothing_strange_here() -> None:
    assert list(find_strangers()) == []


def test_unrelated_0x_distribution_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lightning_core-0.2.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lightning-core\nVersion: 0.2.1\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = find_strangers()
    assert finding.level == "problem"
    assert f"{tmp_path} holds lightning-core 0.2.1, an unrelated project" in finding.text
    assert "pip uninstall -y lightning-core" in finding.fix


def test_metadata_of_another_version_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lightning_core-1.9.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lightning-core\nVersion: 1.9.0\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [finding.level for finding in find_strangers()] == ["problem"]


def test_package_that_shadows_this_one_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lightning_core").mkdir()
    (tmp_path / "lightning_core" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = find_strangers()
    assert f"another package lightning_core is in {tmp_path / 'lightning_core'}" in finding.text


def test_missing_distribution_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib_metadata.distributions", lambda: iter(()))
    (finding,) = find_strangers()
    assert "no distribution lightning-core is installed" in finding.text


def test_strangers_fail_the_command(
    only_core: PluginManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = doctor_command.Finding("problem", "a stranger", "send it away")
    monkeypatch.setattr(doctor_command, "find_strangers", lambda: [finding])
    result = run()
    assert result.exit_code == 1
    assert "problem: a stranger\n      fix: send it away" in result.output
    assert "1 problem found" in result.output


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("OTEL_SDK_DISABLED", "true", "note"),
        ("OTEL_TRACES_SAMPLER", "always_off", "note"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "10", "note"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318", "note"),
        ("OTEL_PYTHON_CONTEXT", "something_else", "problem"),
    ],
)
def test_telemetry_variables_are_explained(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, level: str
) -> None:
    monkeypatch.setenv(name, value)
    recorded, finding = telemetry()
    assert recorded.level == "ok"
    assert finding.level == level
    assert finding.text.startswith(f"{name}={value}")


def test_telemetry_that_cuts_spans_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider

    monkeypatch.setattr(
        "lightning_core.emitter.context.private_provider",
        lambda: TracerProvider(span_limits=SpanLimits(max_attribute_length=10)),
    )
    finding = next(iter(telemetry()))
    assert finding.level == "problem"
    assert finding.fix
