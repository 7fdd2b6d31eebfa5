"""A door to the LLM proxy, which the package ``lightning-llm-proxy`` provides."""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from lightning_llm_proxy import LLMProxy as LLMProxy  # noqa: PLC0414 - exported

__getattr__, __dir__, __all__ = lazy_module(
    __name__, {}, plugins={"LLMProxy": ("lightning_llm_proxy", "lightning-llm-proxy")}
)
