"""Nothing that users can use is missing from the documentation, and no link leads nowhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path

import click
import pytest

import lightning_core
from lightning_core.cli import main
from lightning_core.plugin import KINDS, LightningSpecs
from lightning_core.trainer import Trainer

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
TEXT = {page: page.read_text() for page in PAGES}
PLUGIN_PAGES = "\n".join(text for page, text in TEXT.items() if page.parent.name == "plugins")
REFERENCE = "\n".join(text for page, text in TEXT.items() if page.parent.name == "reference")
SOURCES = [*(ROOT / "lightning_core").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]


@pytest.mark.parametrize("spec", [name for name in vars(LightningSpecs) if not name.startswith("_")])
def test_hookspec_is_documented(spec: str) -> None:
    assert f"`{spec}`" in PLUGIN_PAGES


@pytest.mark.parametrize("kind", KINDS)
def test_kind_has_a_page_with_a_plugin_that_is_installed_and_run(kind: str) -> None:
    text = TEXT[DOCS / "plugins" / f"{kind.replace('_', '-')}.md"]
    assert f'"{kind}.' in text
    assert "<!-- file: pyproject.toml -->" in text


def command_tree(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            found += command_tree(child, f"{path} {name}")
    return found


COMMANDS = dict(command_tree(main, "lightning-core"))


@pytest.mark.parametrize("path", COMMANDS)
def test_command_and_its_options_are_documented(path: str) -> None:
    sections = TEXT[DOCS / "cli.md"].split("\n## ")
    section = next((text for text in sections if text.startswith(f"{path}\n")), "")
    missing = [
        name
        for parameter in COMMANDS[path].params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
        if f"`{name}`" not in section
    ]
    assert section
    assert not missing


def environment_variables() -> set[str]:
    literal = re.compile(r"""(?:environ(?:\.get\(|\[)|getenv\(|envvar=)\s*["']([A-Z][A-Z0-9_]+)["']""")
    named = re.compile(r"""_VARIABLE[^=\n]*=\s*["']([A-Z][A-Z0-9_]+)["']""")
    sources = [path.read_text() for path in SOURCES]
    return {name for text in sources for pattern in (literal, named) for name in pattern.findall(text)}


def test_environment_variables_are_found_in_the_source() -> None:
    assert {"LIGHTNING_CORE_DISABLE_PLUGINS", "OPENAI_BASE_URL"} <= environment_variables()


@pytest.mark.parametrize("variable", sorted(environment_variables()))
def test_environment_variable_is_documented(variable: str) -> None:
    assert f"`{variable}`" in TEXT[DOCS / "environment.md"]


@pytest.mark.parametrize("name", sorted(lightning_core.__all__))
def test_public_name_is_listed(name: str) -> None:
    assert f"| `{name}` |" in TEXT[DOCS / "reference" / "index.md"]


def public_modules() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(lightning_core.__path__, "lightning_core.")]
    # The commands have a page of their own.
    return [name for name in found if "._" not in name and not name.startswith("lightning_core.cli")]


@pytest.mark.parametrize("module", public_modules())
def test_module_is_in_the_reference(module: str) -> None:
    if hasattr(importlib.import_module(module), "__path__"):
        pytest.skip("a package: its names are documented in the modules that define them")
    assert re.search(rf"automodule:: {re.escape(module)}$", REFERENCE, re.MULTILINE)


@pytest.mark.parametrize(
    "keyword", [name for name in inspect.signature(Trainer).parameters if name not in ("self", "unknown")]
)
def test_keyword_of_trainer_is_explained_by_its_docstring(keyword: str) -> None:
    assert re.search(rf"^ +{keyword}: ", Trainer.__doc__ or "", re.MULTILINE)


def core_dependencies() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        requirements = tomllib.load(file)["project"]["dependencies"]
    return [re.split(r"[<>=\[ ]", requirement)[0] for requirement in requirements]


@pytest.mark.parametrize("name", core_dependencies())
def test_dependency_of_the_core_is_named(name: str) -> None:
    text = TEXT[DOCS / "architecture.md"].lower().replace("the opentelemetry sdk", "opentelemetry-sdk")
    assert name in text


def links(text: str) -> list[str]:
    prose = re.sub(r"^(```+).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "page",
    [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("plugins/*/*.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_lead_somewhere(page: Path) -> None:
    broken: list[str] = []
    for link in links(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_a_table_of_contents() -> None:
    listed: set[Path] = set()
    for page, text in TEXT.items():
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            entries = [
                line.strip() for line in tree.splitlines() if line.strip() and not line.startswith(":")
            ]
            listed.update((page.parent / f"{entry}.md").resolve() for entry in entries)
    assert {page.resolve() for page in PAGES} - listed == {(DOCS / "index.md").resolve()}
