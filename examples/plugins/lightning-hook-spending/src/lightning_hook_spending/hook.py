"""A hook that adds up what the calls of language models cost, and stops when that is enough."""

from collections.abc import Sequence
from typing import Any

from lightning_core import Hook
from lightning_core.errors import VetoRollout

# As OpenTelemetry's conventions and OpenInference name them.
INPUT = ("gen_ai.usage.input_tokens", "llm.token_count.prompt")
OUTPUT = ("gen_ai.usage.output_tokens", "llm.token_count.completion")


class Spending(Hook):
    def __init__(self, limit: float, input_price: float, output_price: float) -> None:
        self.limit = limit
        self.prices = [(key, input_price / 1e6) for key in INPUT] + [
            (key, output_price / 1e6) for key in OUTPUT
        ]
        self.spent = 0.0

    async def on_rollout_start(self, **event: Any) -> None:
        if self.spent >= self.limit:
            raise VetoRollout(f"{self.spent:.2f} of {self.limit:.2f} is spent")

    async def on_rollout_end(self, *, spans: Sequence[Any], **event: Any) -> None:
        for span in spans:
            self.spent += sum(price * span.attributes.get(key, 0) for key, price in self.prices)
