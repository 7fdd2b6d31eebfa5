"""The engine interface: serves a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType

from lightning_core.types import LLM

__all__ = ["BaseEngine", "EngineCapabilities"]


@dataclass(frozen=True)
class EngineCapabilities:
    """What an engine can tell and do beyond answering chat completions.

    Attributes:
        token_ids: Answers carry the ids of the sampled tokens.
        logprobs: Answers carry log-probabilities.
        update_weights: The model's weights can be replaced while it serves.
    """

    token_ids: bool = False
    logprobs: bool = False
    update_weights: bool = False


class BaseEngine(ABC):
    """Serves a model. May be started and stopped repeatedly; ``with engine as llm:`` does both."""

    @property
    def capabilities(self) -> EngineCapabilities:
        """What this engine can do."""
        return EngineCapabilities()

    @abstractmethod
    def start(self) -> LLM:
        """Start serving and wait until requests are answered.

        Starting an engine that runs already returns the same endpoint.

        Raises:
            EngineError: If the model cannot be loaded or the address is taken.
        """

    @abstractmethod
    def stop(self) -> None:
        """Stop serving and free the model; does nothing if it is not running."""

    def __enter__(self) -> LLM:
        """Start serving."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop serving."""
        self.stop()
