"""The generated parts of the documentation say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"
REWRITE = "run `python docs/generate.py` with every plugin installed"


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()
PLUGINS = generate.first_party()


def regions() -> list[tuple[Path, str]]:
    return [
        (page, match["name"])
        for page in generate.pages()
        for match in generate.REGION.finditer(page.read_text())
    ]


@pytest.mark.parametrize(
    ("page", "name"),
    [found for found in regions() if found[1] not in ("settings", "plugin-packages")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_generated_part_is_up_to_date(page: Path, name: str) -> None:
    assert generate.region(name) in page.read_text(), REWRITE


@pytest.mark.parametrize("key", sorted(generate.builtin_sections()))
def test_settings_of_built_in_component_are_documented(key: str) -> None:
    assert generate.builtin_sections()[key] in (DOCS / "settings.md").read_text(), REWRITE


@pytest.mark.parametrize("key", sorted(PLUGINS))
def test_settings_of_plugin_are_documented(key: str) -> None:
    package = PLUGINS[key].partition(".")[0]
    pytest.importorskip(
        package, reason=f"the settings of {key} are read from {package}, which is not installed"
    )
    assert generate.plugin_section(key, PLUGINS[key]) in (DOCS / "settings.md").read_text(), REWRITE


@pytest.mark.parametrize("package", sorted({module.partition(".")[0] for module in PLUGINS.values()}))
def test_plugin_package_is_in_the_reference(package: str) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    assert generate.plugin_package(package) in (DOCS / "reference" / "plugins.md").read_text(), REWRITE


def test_settings_page_lists_nothing_that_does_not_exist() -> None:
    listed = {line[4:] for line in (DOCS / "settings.md").read_text().splitlines() if line.startswith("### ")}
    assert listed == {*generate.builtin_sections(), *PLUGINS}


def test_settings_table_shows_type_default_and_description() -> None:
    from lightning_core.plugin.builtins import AgentRunnerConfig

    table = generate.settings_table(AgentRunnerConfig)
    assert "| `max_rollouts` | `int \\| None` | `None` | Rollouts after which" in table
