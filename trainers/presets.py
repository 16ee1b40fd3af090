"""Presets: settings that go together, by name. What they hold stands in a run's config.json like any other setting."""

from __future__ import annotations

from typing import Any

from trainers import kinds

#: What works in minutes on two CPU cores with some hours of speech, chosen on dev: docs/decisions/0011-small-preset.md.
_SMALL_HEAD: dict[str, Any] = {
    "width": 96,
    "layers": 2,
    "heads": 4,
    "ffn": 384,
    "channel_dropout": True,
    "input_dropout": 0.2,
    "conv_frames": 9,
    "token_frames": 4,
    "crop_s": 15.0,
    "batch_size": 4,
    "epochs": 16,
    "patience": 8,
    "lr": 2e-3,
    "warmup_steps": 100,
    "ema": 0.99,
    "thresholds": [0.3, 0.4, 0.45, 0.5, 0.6],
    "medians": [5, 11, 17],
}

#: Over it: half of the examples hear what came before, so it takes more of them. docs/decisions/0018-cache.md
_CACHED: dict[str, Any] = {"cache_s": 15.0, "epochs": 24}

#: Fewer steps of a smaller network.
_SMALL_UNMIX: dict[str, Any] = {"width": 96, "layers": 2, "windows": True, "steps": 1500, "looks": 10}
#: A fraction of the work a step, and what it took to learn whom to listen for: docs/decisions/0017-extraction.md.
_SMALL_TSE: dict[str, Any] = {
    "architecture": "gru",
    "channels": 128,
    "window": 1024,
    "hop": 512,
    "crop_s": 2.0,
    "least_voices": 2,
    "remixed": 1.0,
    "steps": 3200,
    "lr": 2e-3,
}

#: The probe and the cascade take a minute as they are.
_SMALL = {
    "adapter": _SMALL_HEAD,
    "fusion": _SMALL_HEAD,
    "unfreeze": _SMALL_HEAD,
    "unmix": _SMALL_UNMIX,
    "tse": _SMALL_TSE,
}

NAMES = ("published", "small")


def settings_of(kind: str, preset: str, protocol: str = "sound") -> dict[str, Any]:
    """What `preset` sets for a kind under a protocol; "published" is what its class holds by default, so it sets nothing.

    Raises
    ------
    ValueError : there is no such kind, or no such preset.
    """
    kinds.settings_of(kind)
    if preset not in NAMES:
        raise ValueError(f"preset must be one of {', '.join(NAMES)}, found {preset!r}")
    if preset != "small":
        return {}
    # The published procedure hears windows alone.
    cached = _CACHED if kind == "fusion" and protocol == "sound" else {}
    return {**_SMALL.get(kind, {}), **cached}
