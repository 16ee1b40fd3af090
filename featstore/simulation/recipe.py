"""Recipes of simulated sessions: a TOML file's keys, checked."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from featstore.settings import Count, NotNegative, Positive, make, read_toml, settings

#: What recipes and splits may be called: their names become parts of file names.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)


def is_count(value: object) -> bool:
    """Whether `value` is a whole number of 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _safe(value: str) -> str:
    if not SAFE_NAME.fullmatch(value):
        raise ValueError("letters, digits, '.', '_' and '-'")
    return value


def _counts(value: Any) -> Any:
    counts = list(value.values()) if isinstance(value, dict) else [value]
    if not counts or not all(map(is_count, counts)):
        raise ValueError("a whole number of 1 or more, or a table of them")
    return value


_Counts = Annotated[int | dict[str, int], BeforeValidator(_counts)]


def _pair(value: Any) -> Any:
    """``[low, high]`` as TOML has it, or one number for both."""
    one = isinstance(value, int | float) and not isinstance(value, bool)
    return (value, value) if one else tuple(value) if isinstance(value, list) else value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("a number or [low, high], the lower first")
    return value


T = TypeVar("T")
_Share = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[T, T], BeforeValidator(_pair), AfterValidator(_ordered)]


@settings
class Recipe:
    """What sessions are asked for. A TOML recipe has these keys; ranges are ``[low, high]`` or one number."""

    name: Annotated[str, AfterValidator(_safe)] = Field(description="of the recipe; the file's name if not given")
    sessions: _Counts = Field(description="how many; or a table {train = 24, dev = 6} with a count for each split")
    speakers: Range[Count] = Field(description="number of speakers in a session, drawn evenly from the range")
    overlap: Range[_Share] = Field(
        description="layout conversation: time in which two speak / time in which anybody speaks (NeMo's definition), "
        "at most 0.5; layout pair: length of the overlap / length of the shorter of the two utterances"
    )
    # Not for layout "pair", whose sessions are as long as their speech.
    duration_s: Range[Positive] | None = Field(None, description="of a session of layout conversation")
    silence: Range[Annotated[float, Field(ge=0, le=0.9)]] = Field(
        (0.15, 0.15), description="time in which nobody speaks / session; pauses inside utterances count"
    )
    layout: Literal["conversation", "pair"] = Field(
        "conversation", description="pair: one utterance each of two speakers, the second begins before the first ends"
    )
    # The next two: NeMo's defaults.
    turn_prob: _Share = Field(0.875, description="probability that another speaker goes on after a sentence")
    dominance_sd: NotNegative = Field(0.11, description="spread of the speakers' shares of sentences around 1/speakers")
    max_turn_s: Positive = Field(15.0, description="utterances longer than this are cut at their pauses")
    pause_s: Positive = Field(0.3, description="pauses longer than this end a turn; shorter ones belong to it")
    level_sd_db: NotNegative = Field(2.0, description="spread of the speakers' levels")
    noise_snr_db: Range[float] | None = Field(None, description="noise under it all, dB below speech; None: none")
    # Utterances come again when a speaker has no other left.
    min_utterances: Count = Field(1, description="speakers with fewer utterances are left out")
    sample_rate_hz: Count = Field(16_000, description="of the sessions")
    audio_format: Literal["flac", "opus"] = Field("flac", description="opus: Ogg Opus, 12 kbit/s")

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        def need(good: bool, key: str, expected: str) -> None:
            if not good:
                raise ValueError(f"{key} must be {expected}, found {getattr(self, key)!r}")

        opus = self.audio_format == "opus"
        need(not opus or self.sample_rate_hz in _OPUS_RATES_HZ, "sample_rate_hz", f"one of {_OPUS_RATES_HZ} for opus")
        if self.layout == "pair":
            need(self.speakers == (2, 2), "speakers", '2 where layout is "pair"')
        else:
            need(self.overlap[1] <= 0.5, "overlap", '0 to 0.5 where layout is "conversation"')
            need(self.duration_s is not None, "duration_s", 'given where layout is "conversation"')
        return self


def read_recipe(path_or_name: str | os.PathLike[str]) -> Recipe:
    """Read a recipe: a TOML file, or the name of one that stands in ``data_manifests/recipes``.

    Raises
    ------
    ValueError : no such file or name, not TOML, an unknown or missing key, a value out of range.
    """
    path = Path(path_or_name)
    if path.suffix != ".toml" and not path.is_file():
        own = Path(__file__).resolve().parents[2] / "data_manifests" / "recipes"
        path = own / f"{path_or_name}.toml"
        if not path.is_file():
            known = ", ".join(sorted(found.stem for found in own.glob("*.toml"))) or "none installed"
            raise ValueError(f"no recipe {str(path_or_name)!r}: give a .toml file or one of: {known}")
    return make(Recipe, (str(path), {"name": path.stem, **read_toml(path)}))
