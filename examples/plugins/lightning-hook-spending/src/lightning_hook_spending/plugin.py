"""What lightning-core reads: the settings and the component."""

from pydantic import BaseModel, Field

from lightning_core import Component, hookimpl


class SpendingConfig(BaseModel, extra="forbid"):
    """Settings of the hook ``spending``."""

    limit: float = Field(gt=0, description="What the run may cost, in the currency of the prices.")
    input_price: float = Field(ge=0, description="Price of a million prompt tokens.")
    output_price: float = Field(ge=0, description="Price of a million tokens of answers.")


def make_spending(limit: float, input_price: float, output_price: float):
    from .hook import Spending

    return Spending(limit, input_price, output_price)


@hookimpl
def lightning_hooks():
    summary = "Cancels what is left of a run when its calls have cost enough."
    return [Component("spending", make_spending, SpendingConfig, summary=summary, api_version=1)]
