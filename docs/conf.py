"""How the documentation is built: MyST pages, and a reference from the docstrings."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import Any

project = "lightning-core"
author = "lightning-core contributors"
copyright = author
release = version("lightning-core")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lightning-core {release}"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
# Pydantic's own members say nothing about ours.
autodoc_default_options["exclude-members"] = "model_config, model_fields, model_computed_fields, __init__, __new__"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# The package is documented name by name; `reference/index.md` lists what `import lightning_core` offers.
PUBLIC_PACKAGES = [
    "lightning_core",
    "lightning_core.adapter",
    "lightning_core.algorithm",
    "lightning_core.emitter",
    "lightning_core.engine",
    "lightning_core.errors",
    "lightning_core.execution",
    "lightning_core.litagent",
    "lightning_core.plugin",
    "lightning_core.runner",
    "lightning_core.store",
    "lightning_core.testing",
    "lightning_core.tracer",
    "lightning_core.trainer",
    "lightning_core.types",
]
