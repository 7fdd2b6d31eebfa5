"""A door to the LLM proxy, which the package ``lightning-llm-proxy`` provides."""

from lightning_core._lazy import lazy_module

__getattr__, __dir__, __all__ = lazy_module(
    __name__, {}, plugins={"LLMProxy": ("lightning_llm_proxy", "lightning-llm-proxy")}
)
