"""How the documentation is built: MyST pages, and a reference from the docstrings."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import version as installed_version
from typing import Any

from sphinx.util import logging

import lightning_core

logger = logging.getLogger(__name__)

project = "lightning-core"
author = "lightning-core contributors"
copyright = author
release = installed_version("lightning-core")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lightning-core {release}"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "show-inheritance": True,
    # Pydantic's own members say nothing about ours.
    "exclude-members": "model_config, model_fields, model_computed_fields, __init__, __new__",
}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


def is_installed(module: Any, name: str) -> bool:
    """Whether a name is there; some come from a plugin that may not be installed, or does not exist yet."""
    try:
        return hasattr(module, name)
    except ImportError:
        return False


def check_public_names(app: Any, env: Any) -> None:
    """Warn of every public name of the core that the reference lacks."""
    documented = {name.rpartition(".")[2] for name in env.domains["py"].objects}
    packages = [found.name for found in pkgutil.iter_modules(lightning_core.__path__) if found.ispkg]
    packages.remove("cli")  # It has a page of its own.
    for package in ["lightning_core", *(f"lightning_core.{name}" for name in packages)]:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            if name not in documented and is_installed(module, name):
                logger.warning("%s.%s is missing from the reference", package, name)


def setup(app: Any) -> None:
    """Register what is checked after the pages were read."""
    app.connect("env-check-consistency", check_public_names)
