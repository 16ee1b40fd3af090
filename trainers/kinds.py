"""What can be fitted: by kind, the class of its settings and the function that fits it. A new kind is a line here.

Nothing is imported before its kind is asked for: a command line that lists the kinds starts at once.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

#: kind → its settings and its function (run, store, *, progress) → what it wrote to result.json.
_KINDS = {
    "probe": ("trainers.config.ProbeConfig", "trainers.probe.fit_probe"),
    "adapter": ("trainers.diarization.config.AdapterConfig", "trainers.diarization.fit.fit_diarizer"),
    "fusion": ("trainers.diarization.config.FusionConfig", "trainers.diarization.fit.fit_diarizer"),
    "cascade": ("trainers.cascade.config.CascadeConfig", "trainers.cascade.fit.fit_cascade"),
    "proxy": ("trainers.proxy.config.ProxyConfig", "trainers.proxy.fit.fit_proxy"),
    "unmix": ("trainers.unmix.config.UnmixConfig", "trainers.unmix.fit.fit_unmix"),
    "tse": ("trainers.tse.config.TseConfig", "trainers.tse.fit.fit_tse"),
    "unfreeze": ("trainers.diarization.config.UnfreezeConfig", "trainers.diarization.fit.fit_diarizer"),
}
NAMES = tuple(_KINDS)


def settings_of(kind: str) -> Any:
    """The class of a kind's settings, a subclass of `trainers.config.FitConfig`; ValueError: no such kind."""
    return _load(kind, 0)


def function_of(kind: str) -> Callable[..., dict[str, Any]]:
    """The function that fits a kind; ValueError: no such kind."""
    return _load(kind, 1)


def _load(kind: str, which: int) -> Any:
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, found {kind!r}")
    module, _, name = _KINDS[kind][which].rpartition(".")
    return getattr(import_module(module), name)
