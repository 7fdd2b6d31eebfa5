"""Runs the examples of one documentation page, as its reader would: ``run_page.py PAGE FOLDER``.

Python blocks are executed in order in one namespace, with FOLDER as the working directory. A comment on the line
above a block says what else is to be done with it:

``<!-- file: path -->``
    The block, of any language, is a file of FOLDER. Files under ``src/`` can be imported, and a ``pyproject.toml``
    is "installed": its name, version, requirements and entry points become visible to ``importlib.metadata``. Files
    under ``tests/`` are run with pytest at the end.
``<!-- output -->``
    The block is what the Python block before it prints.
``<!-- needs: module, module -->``
    The block is left out, and the page reported as skipped, where one of these cannot be imported.
``<!-- illustration: reason -->``
    The block is not run, for the reason given.

Exits with 0, with 77 if blocks were left out, or with the traceback of what failed, whose line numbers are the page's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SKIPPED = 77
MARKERS = ("file", "output", "needs", "illustration")
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|:{3,})(?P<language>[\w{}+-]*)[^`]*$")
_MARKER = re.compile(r"^ *<!-- (?P<name>\w+)(?:: *(?P<value>.*?))? *-->$")


class PageError(Exception):
    """The page itself is malformed."""


@dataclass
class Block:
    """One fenced block; ``line`` is the number of its first line of code."""

    language: str
    code: str
    line: int
    markers: dict[str, str]


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    lines = page.read_text().splitlines()
    blocks: list[Block] = []
    markers: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if match := _MARKER.match(line):
            name, value = match["name"], match["value"] or ""
            if name in MARKERS:
                if not value and name != "output":
                    raise PageError(f"{page}:{number}: the marker {name!r} says nothing")
                markers[name] = value
            continue
        match = _FENCE.match(line)
        if match is None:
            if line.strip() and markers:
                raise PageError(f"{page}:{number}: the marker above is not followed by a block")
            continue
        start = number
        while number < len(lines) and lines[number].strip() != match["fence"]:
            number += 1
        indent = len(match["indent"])
        code = "\n".join(text[indent:] for text in lines[start:number]) + "\n"
        blocks.append(Block(match["language"], code, start + 1, markers))
        markers = {}
        number += 1
    return blocks


def pretend_install(pyproject: Path, source: Path) -> None:
    """Write what an installer would leave of a project next to its code."""
    with pyproject.open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    folder = source / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir(parents=True)
    metadata = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
    metadata += [f"Requires-Dist: {need}" for need in project.get("dependencies", [])]
    (folder / "METADATA").write_text("\n".join(metadata) + "\n")
    groups = project.get("entry-points", {})
    text = "".join(
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in groups.items()
    )
    (folder / "entry_points.txt").write_text(text)


def write_files(blocks: list[Block], folder: Path) -> None:
    """Write the blocks that are files, and install the project that they make up, if they do."""
    for block in blocks:
        if "file" in block.markers:
            path = folder / block.markers["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
    if (folder / "pyproject.toml").exists():
        pretend_install(folder / "pyproject.toml", folder / "src")


def missing(block: Block) -> list[str]:
    """Return the modules that a block needs and that are not installed."""
    names = [name.strip() for name in block.markers.get("needs", "").split(",")]
    return [name for name in names if name and importlib.util.find_spec(name) is None]


def run_blocks(page: Path, blocks: list[Block]) -> list[str]:
    """Execute the Python blocks of a page, and return why some were left out."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    left_out: list[str] = []
    printed: str | None = None
    for block in blocks:
        if "illustration" in block.markers or "file" in block.markers:
            continue
        if "output" in block.markers:
            if printed is not None and printed.strip() != block.code.strip():
                raise PageError(f"{page}:{block.line}: the page says\n{block.code}\nbut it prints\n{printed}")
            continue
        if block.language != "python":
            continue
        if absent := missing(block):
            left_out.append(f"line {block.line} needs {', '.join(absent)}")
            printed = None
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            # Blank lines in front give tracebacks the line numbers of the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
        printed = out.getvalue()
        sys.stdout.write(printed)
    return left_out


def run_tests(folder: Path) -> None:
    """Run the page's own tests."""
    arguments = ["-q", "-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider"]
    arguments += ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    # They come with packages that other tests need, and take seconds to import.
    arguments += ["-p", "no:langsmith_plugin", "-p", "no:schemathesis"]
    os.environ["PYTHONPATH"] = str(folder / "src")
    if pytest.main([*arguments, "--import-mode=importlib", str(folder / "tests")]) != 0:
        raise PageError(f"the tests in {folder / 'tests'} fail")


def main(page: Path, folder: Path) -> int:
    """Run one page; see the module's docstring."""
    blocks = read_blocks(page)
    write_files(blocks, folder)
    sys.path.insert(0, str(folder / "src"))
    os.chdir(folder)
    left_out = run_blocks(page, blocks)
    if (folder / "tests").exists():
        run_tests(folder)
    if left_out:
        print(f"{page.name}: " + "; ".join(left_out), file=sys.stderr)
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()))
