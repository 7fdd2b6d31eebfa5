"""The process in which llama.cpp serves: it runs this file as a script.

It reads its settings, a line of JSON, from the standard input, and writes the address to the standard output when
requests are answered. It ends when it is terminated, or when the standard input closes, so that it does not
outlive the process that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module
from typing import Any

__all__ = ["serve"]

# How much memory holds the state of prompts that have lost their slot to others, in MiB. Templates that are tried
# in turn share long beginnings, such as worked examples, which need not be computed again.
_PROMPT_CACHE_MIB = 256
_WARNINGS = 2


def serve(settings: dict[str, Any]) -> Any:
    """Start the server and return it; it serves as long as there is a reference to it."""
    llama: Any = import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = {settings["name"]}
    params.n_parallel = settings["n_parallel"]
    params.n_ctx = settings["n_parallel"] * settings["context"]
    params.cpuparams.n_threads = settings["n_threads"]
    params.cpuparams_batch.n_threads = settings["n_threads"]
    if settings["seed"] is not None:
        params.sampling.seed = settings["seed"]
    params.hostnames = [settings["host"]]
    params.port = settings["port"]
    if settings["api_key"] is not None:
        params.api_keys = [settings["api_key"]]
    # By default the web pages of anybody, open in a browser on this machine, may use the endpoint.
    params.cors_origins = ""
    params.ui = False
    params.endpoint_slots = False
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    # Without it, llama.cpp changes the context that was asked for if it finds little memory.
    params.fit_params = False
    params.warmup = False
    params.verbosity = _WARNINGS
    return llama.Server(params)


def main() -> None:
    """Serve until the standard input closes."""
    # Ctrl+C in a terminal reaches this process too; the one that started it decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever else a library prints belongs into the log.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = serve(json.loads(sys.stdin.readline()))
    answer.write(server.listening_address + "\n")
    answer.flush()
    sys.stdin.read()
    # Deleting the server would wait for the requests under way, and nobody is left to read the answers.
    os._exit(0)


if __name__ == "__main__":
    main()
