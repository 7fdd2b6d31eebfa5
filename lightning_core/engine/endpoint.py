"""The engine that serves nothing itself: it stands for an OpenAI-compatible endpoint that is served elsewhere."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

from pydantic import SecretStr

from lightning_core.engine.base import BaseEngine
from lightning_core.errors import EngineError
from lightning_core.types import LLM

__all__ = ["EndpointEngine"]


class EndpointEngine(BaseEngine):
    """Checks at the start that the endpoint answers, so that a wrong address is found before any rollout.

    Args:
        base_url: The API's base URL, with its ``/v1``; ``None`` for the environment's ``OPENAI_BASE_URL``.
        model: The model; ``None`` for ``OPENAI_MODEL``, or else the first one that the endpoint lists.
        api_key: The key; ``None`` for ``OPENAI_API_KEY``.
        timeout: Seconds within which the endpoint must answer.
    """

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        api_key: SecretStr | str | None = None,
        timeout: float = 10.0,
    ) -> None:
        url = base_url or os.environ.get("OPENAI_BASE_URL")
        if not url:
            raise EngineError("engine 'endpoint' has no address: set base_url, or OPENAI_BASE_URL")
        if not url.startswith(("http://", "https://")):
            raise EngineError(f"engine 'endpoint': base_url must begin with http:// or https://, not {url!r}")
        key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
        self._url = url.rstrip("/")
        self._model = model or os.environ.get("OPENAI_MODEL")
        self._key = key or os.environ.get("OPENAI_API_KEY")
        self._timeout = timeout

    def start(self) -> LLM:
        """Ask the endpoint for its models.

        Raises:
            EngineError: If it does not answer, refuses the key, or lists no model while none was chosen.
        """
        request = urllib.request.Request(f"{self._url}/models")
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                answer: Any = json.loads(response.read())
            served = [str(model["id"]) for model in answer["data"]]
        except urllib.error.HTTPError as error:
            advice = (
                "check the key (api_key, OPENAI_API_KEY)" if error.code in (401, 403) else "check base_url"
            )
            raise EngineError(f"{request.full_url} answers {error.code} {error.reason}: {advice}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{request.full_url} does not answer as an OpenAI-compatible endpoint should "
                f"({type(error).__name__}: {error}): is the server running, and is base_url right?"
            ) from error
        model = self._model or next(iter(served), None)
        if model is None:
            raise EngineError(f"{self._url} lists no model: set model, or OPENAI_MODEL")
        return LLM(endpoint=self._url, model=model, api_key=self._key)

    def stop(self) -> None:
        """Nothing to stop: somebody else serves."""
