"""Settings of a run: what every kind has, and how they are read; each kind's own class adds what only it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from featstore.settings import (
    ConfigError,
    Count,
    NotNegative,
    Positive,
    WholeNumber,
    make,
    read_texts,
    read_toml,
    settings,
)
from trainers import kinds, presets

__all__ = ["ConfigError", "FitConfig", "ProbeConfig"]


def _features(value: str) -> str:
    names = value.split("+")
    if not all(names) or len(set(names)) < len(names):
        raise ValueError("different names joined with '+'")
    return value


Features = Annotated[str, AfterValidator(_features), Field(description="of the store; joined with +: concatenated")]


@settings
class FitConfig:
    """Everything that decides a run. A kind's class holds its defaults: the published recipe."""

    kind: str
    protocol: Literal["sound", "reference"] = Field("sound", description="reference: as published, flaws included")
    experiment: Literal["", "1.5", "poc", "2", "2.5", "3", "4", "5", "6", "7"] = Field(
        "", description="row of the report that the run is for; empty: the one of its kind"
    )
    seed: WholeNumber = Field(0, description="of everything that is drawn")
    train_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the training data that is used, drawn by the seed; a smaller one is part of a larger"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that are read, in order; a kind's class says where it has them from."""
        raise NotImplementedError

    @staticmethod
    def make(
        kind: str,
        *,
        preset: str = "published",
        file: str | Path | None = None,
        settings: Sequence[str] = (),
        **overrides: Any,
    ) -> FitConfig:
        """The recipe of `kind`, then a `preset`, a TOML `file`, ``key=value`` texts, keyword `overrides` (None: unset).

        Raises
        ------
        ConfigError : an unknown key (names near matches), a wrong value, a file that cannot be read.
        ValueError : no such kind or preset.
        """
        cls = kinds.settings_of(kind)
        given = {key: value for key, value in overrides.items() if value is not None}
        in_file = read_toml(file) if file is not None else {}
        texts = read_texts(cls, settings)
        protocol = {"protocol": "sound", **in_file, **texts, **given}["protocol"]
        base = presets.settings_of(kind, preset, protocol)
        return make(cls, ("", base), (str(file), in_file), ("", texts), ("", given))

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> FitConfig:
        """Read what `to_json` wrote. Version 0.1 wrote every kind's settings into every run: what is not its own goes.

        Raises
        ------
        ConfigError : a key that no kind knows, a wrong value, no such kind.
        """
        cls = kinds.settings_of(data["kind"])
        others = {field.name for kind in kinds.NAMES for field in dataclasses.fields(kinds.settings_of(kind))}
        others -= {field.name for field in dataclasses.fields(cls)}
        return make(cls, ("", {key: value for key, value in data.items() if key not in others}))


@settings
class OneInputConfig(FitConfig):
    """What reads one input: a feature, or several side by side."""

    feature: Features = "mimi"

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(self.feature.split("+"))


@settings
class ProbeConfig(OneInputConfig):
    """The probe: one linear layer on pooled features, scored on a trial list."""

    kind: Literal["probe"] = "probe"
    epochs: Count = Field(100, description="passes over the vectors")
    batch_size: Count = Field(256, description="vectors a step")
    lr: Positive = Field(1e-3, description="learning rate of Adam")
    trials: str = Field("", description="the trial list")
    piece_s: NotNegative = Field(0.0, description="train also on means of pieces this long; 0: not, as published")
