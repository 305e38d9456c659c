"""MLX as a Mac's, when it is imported: its GPU, and the calls that set its memory, which are noted."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from pretend_mac import GIB, system

MODULE = "mlx.core"
CALLS = ("set_memory_limit", "set_cache_limit", "clear_cache")


def watch(mac: dict[str, Any]) -> None:
    sys.meta_path.insert(0, _Finder(mac))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mac: dict[str, Any]) -> None:
        self._mac = mac

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._mac)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, real: importlib.abc.Loader, mac: dict[str, Any]) -> None:
        self._real, self._mac = real, mac

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        switches = {name: value for name, value in os.environ.items() if name.startswith("MLX_")}
        system.note("mlx imported", switches=switches)
        self._real.exec_module(module)
        _pretend(module, self._mac)


def _pretend(mx: Any, mac: dict[str, Any]) -> None:
    working_set = int(mac["working_set"] * GIB)
    device = {
        "device_name": mac["chip"],
        "architecture": "applegpu_g15s",
        "memory_size": mac["memory"] * GIB,
        "max_recommended_working_set_size": working_set,
        "max_buffer_length": working_set * 3 // 4,
        "resource_limit": 499_000,
    }

    def wire(limit: int) -> int:
        system.note("wired", limit=limit, active=mx.get_active_memory())
        if limit > working_set:
            raise ValueError("[metal::set_wired_limit] Setting a wired limit larger than the maximum.")
        return 0

    mx.metal.is_available = lambda: True
    mx.device_info = lambda: device
    mx.set_wired_limit = wire
    for name in CALLS:
        setattr(mx, name, _noted(name, getattr(mx, name)))


def _noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: int) -> Any:
        system.note(name, arguments=arguments)
        return real(*arguments)

    return call
