"""The package keeps the contract of a plugin package."""

from lightning_core.testing import PluginPackageConformance


class TestPackage(PluginPackageConformance):
    distribution = "lightning-llm-proxy"
