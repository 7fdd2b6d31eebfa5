"""Plugins: what they register, how they are found, and how a name becomes a component.

Names are imported when they are first used, so that a plugin's ``plugin.py`` pays only for pluggy and
pydantic.
"""

from typing import TYPE_CHECKING

from lightning_core._lazy import lazy_module

if TYPE_CHECKING:
    from .component import API_VERSION as API_VERSION
    from .component import KINDS as KINDS
    from .component import Component as Component
    from .component import EmptyConfig as EmptyConfig
    from .component import Kind as Kind
    from .discovery import Entry as Entry
    from .discovery import Inventory as Inventory
    from .discovery import Problem as Problem
    from .hookspecs import LightningSpecs as LightningSpecs
    from .lifecycle import EVENTS as EVENTS
    from .lifecycle import HookCall as HookCall
    from .lifecycle import LifecycleHooks as LifecycleHooks
    from .lifecycle import collect_hooks as collect_hooks
    from .manager import PluginManager as PluginManager
    from .manager import plugin_manager as plugin_manager
    from .markers import hookimpl as hookimpl
    from .markers import hookspec as hookspec
    from .resolution import default_name as default_name
    from .resolution import resolve as resolve
    from .resolution import resolve_argument as resolve_argument

__getattr__, __dir__, __all__ = lazy_module(
    __name__,
    {
        "API_VERSION": "lightning_core.plugin.component",
        "EVENTS": "lightning_core.plugin.lifecycle",
        "KINDS": "lightning_core.plugin.component",
        "Component": "lightning_core.plugin.component",
        "EmptyConfig": "lightning_core.plugin.component",
        "Entry": "lightning_core.plugin.discovery",
        "HookCall": "lightning_core.plugin.lifecycle",
        "Inventory": "lightning_core.plugin.discovery",
        "Kind": "lightning_core.plugin.component",
        "LifecycleHooks": "lightning_core.plugin.lifecycle",
        "LightningSpecs": "lightning_core.plugin.hookspecs",
        "PluginManager": "lightning_core.plugin.manager",
        "Problem": "lightning_core.plugin.discovery",
        "collect_hooks": "lightning_core.plugin.lifecycle",
        "default_name": "lightning_core.plugin.resolution",
        "hookimpl": "lightning_core.plugin.markers",
        "hookspec": "lightning_core.plugin.markers",
        "plugin_manager": "lightning_core.plugin.manager",
        "resolve": "lightning_core.plugin.resolution",
        "resolve_argument": "lightning_core.plugin.resolution",
    },
)
