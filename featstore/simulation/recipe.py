"""Recipes of simulated sessions: a TOML file's keys and tables, checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from featstore.settings import Count, NotNegative, Positive, make, read_toml, settings

#: What recipes and splits may be called: their names become parts of file names.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OPUS_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)
#: What a session may be coded with and decoded again; "none" leaves it.
CODECS = ("none", "ulaw", "alaw", "gsm", "opus", "mp3")


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


def _checked(good: Callable[[Any], bool], expected: str) -> BeforeValidator:
    """A test of a value as TOML has it, lists as tuples, with its own words."""

    def check(value: Any) -> Any:
        if not good(value):
            raise ValueError(expected)
        return tuple(tuple(x) if isinstance(x, list) else x for x in value) if isinstance(value, list) else value

    return BeforeValidator(check)


def _is_bands(value: Any) -> bool:
    def is_band(band: Any) -> bool:
        numbers = isinstance(band, list | tuple) and len(band) == 2 and all(isinstance(x, int | float) for x in band)
        return numbers and 0 <= band[0] < band[1]

    return isinstance(value, list | tuple) and len(value) > 0 and all(map(is_band, value))


_Bands = Annotated[tuple[tuple[float, float], ...], _checked(_is_bands, "a list of [low, high] in Hz, the lower first")]
_Speeds = Annotated[
    tuple[float, ...],
    _checked(
        lambda value: (
            isinstance(value, list | tuple)
            and len(value) > 0
            and all(isinstance(x, int | float) and 0.5 <= x <= 2 for x in value)
        ),
        "a list of speeds from 0.5 to 2; 1 is as it was said",
    ),
]
_Codecs = Annotated[
    tuple[str, ...],
    _checked(
        lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(x in CODECS for x in value),
        f"a list of some of {', '.join(CODECS)}",
    ),
]


@settings
class Rooms:
    """Table ``[rooms]``: in what rooms sessions are held; one for a session, a place in it for each speaker."""

    share: _Share = Field(1.0, description="of the sessions that are held in a room; the others stay dry")
    t60_s: Range[Positive] = Field((0.2, 0.8), description="reverberation time: until sound has fallen by 60 dB")
    length_m: Range[Positive] = Field((3.0, 8.0), description="of the room")
    width_m: Range[Positive] = Field((3.0, 8.0), description="of the room")
    height_m: Range[Positive] = Field((2.4, 3.5), description="of the room")
    distance_m: Range[Positive] = Field((0.3, 3.5), description="from a speaker to the microphone")
    folder: str | None = Field(None, description="measured responses instead, those of a room in a folder of its own")

    @model_validator(mode="after")
    def _one_kind(self) -> Rooms:
        if self.folder is not None and replace(self, folder=None) != Rooms(share=self.share):
            raise ValueError(
                "folder: measured rooms have the size and reverberation they have; leave out all but share"
            )
        return self


@settings
class Noise:
    """Table ``[noise]``: in what share of the sessions there is which noise, and how far below the speech it is."""

    snr_db: Range[float] = Field((3.0, 25.0), description="of each kind: speech while anybody speaks / noise")
    coloured: _Share = Field(0.0, description="share of sessions with steady noise")
    slope: Range[float] = Field((0.0, 2.0), description="of the coloured: power falls as 1/f^slope; 0 white, 1 pink")
    hum: _Share = Field(0.0, description="share of sessions with mains hum: 50 or 60 Hz and harmonics")
    babble: _Share = Field(0.0, description="share of sessions with voices of the split that are not in the session")
    babble_voices: Count = Field(6, description="how many voices babble")
    recorded: _Share = Field(0.0, description="share of sessions with recorded noise")
    manifest: str | None = Field(None, description="of the recorded noise, in the form of any manifest")

    @model_validator(mode="after")
    def _together(self) -> Noise:
        if (self.recorded > 0) != (self.manifest is not None):
            raise ValueError("recorded and manifest go together: a share of sessions, and a manifest of noise")
        if not any((self.coloured, self.hum, self.babble, self.recorded)):
            raise ValueError("[noise] asks for nothing: give a share to coloured, hum, babble or recorded")
        return self


@settings
class Channel:
    """Table ``[channel]``: how sessions were transmitted; one of each list for a session, drawn evenly."""

    bands_hz: _Bands = Field(((0.0, 1e6),), description="what passes; 0 and half the sampling rate cut nothing off")
    codecs: _Codecs = Field(("none",), description="coded and decoded; ulaw, alaw and gsm at 8 kHz, the others at 16")


_TABLES: Mapping[str, type] = {"rooms": Rooms, "noise": Noise, "channel": Channel}
_Table = _checked(lambda value: value is None or type(value) in _TABLES.values(), "a table of its own, as [rooms] is")


@settings
class Recipe:
    """What sessions are asked for. A TOML recipe has these keys; ranges are ``[low, high]`` or one number."""

    name: Annotated[str, AfterValidator(_safe)] = Field(description="of the recipe; the file's name if not given")
    sessions: _Counts = Field(description="how many; or a table {train = 24, dev = 6} with a count for each split")
    speakers: Range[Count] = Field(description="number of speakers in a session, drawn evenly from the range")
    overlap: Range[_Share] = Field(
        description="layout conversation: time in which two speak / time in which anybody speaks (NeMo's definition), "
        "at most 0.5; layout pair: length of the overlap / length of the shorter of the two utterances; layout mix: of "
        "any two voices"
    )
    # Not for layout "pair", whose sessions are as long as their speech.
    duration_s: Range[Positive] | None = Field(None, description="of a session of layout conversation or mix")
    silence: Range[Annotated[float, Field(ge=0, le=0.9)]] = Field(
        (0.15, 0.15), description="time in which nobody speaks / session; pauses inside utterances count"
    )
    layout: Literal["conversation", "pair", "mix"] = Field(
        "conversation",
        description="pair: one utterance each of two speakers, the second begins before the first ends; mix: a cut of one "
        "utterance each of all speakers, over one another, and each voice's own track beside the mixture",
    )
    # The next two: NeMo's defaults.
    turn_prob: _Share = Field(0.875, description="probability that another speaker goes on after a sentence")
    dominance_sd: NotNegative = Field(0.11, description="spread of the speakers' shares of sentences around 1/speakers")
    voices: Count = Field(2, description="at most this many speak at once")
    absence_s: Range[Positive] | None = Field(
        None,
        description="for so long half of the speakers say nothing, after which they come back; None: nobody leaves",
    )
    max_turn_s: Range[Positive] = Field((15.0, 15.0), description="longer utterances are cut at their pauses")
    pause_s: Positive = Field(0.3, description="pauses longer than this end a turn; shorter ones belong to it")
    level_sd_db: NotNegative = Field(2.0, description="spread of the speakers' levels")
    speeds: _Speeds = Field(
        (1.0,),
        description="of split train: each speaker is played at one of these, drawn for each session, and is somebody else at "
        "each (named SPEAKERx0.9): more voices than there are people",
    )
    level_db: Range[float] | None = Field(
        None, description="RMS of the session, dB relative to full scale; None: speech at -26"
    )
    noise_snr_db: Range[float] | None = Field(None, description="noise under it all, dB below speech; None: none")
    rooms: Annotated[Rooms | None, _Table] = Field(None, description="table: where; None: dry")
    noise: Annotated[Noise | None, _Table] = Field(None, description="table: what else is heard; None: nothing")
    channel: Annotated[Channel | None, _Table] = Field(None, description="table: how it was transmitted; None: whole")
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
        half_hz = self.sample_rate_hz / 2
        if self.channel is not None and any(low >= half_hz for low, _ in self.channel.bands_hz):
            raise ValueError(f"[channel] bands_hz must begin below {half_hz:g} Hz, half of sample_rate_hz")
        need(self.noise is None or self.noise_snr_db is None, "noise_snr_db", "left out where there is [noise]")
        if self.layout != "conversation":
            need(self.layout != "pair" or self.speakers == (2, 2), "speakers", '2 where layout is "pair"')
            need(self.layout != "mix" or self.duration_s is not None, "duration_s", 'given where layout is "mix"')
            need(self.absence_s is None, "absence_s", f'left out where layout is "{self.layout}"')
        else:
            need(self.overlap[1] <= 0.5, "overlap", '0 to 0.5 where layout is "conversation"')
            need(self.duration_s is not None, "duration_s", 'given where layout is "conversation"')
            longest_s = 0.6 * (self.duration_s or (0.0, 0.0))[0]
            need(
                self.absence_s is None or self.absence_s[1] <= longest_s,
                "absence_s",
                f"{longest_s:g} s or less: 0.6 of the session",
            )
        return self

    def of(self, split: str) -> Recipe:
        """What it asks of a split: voices at other speeds are for training alone."""
        return self if split == "train" else replace(self, speeds=(1.0,))

    @property
    def is_dry(self) -> bool:
        """Whether nothing but voices and `noise_snr_db` is asked for."""
        return self.rooms is None and self.noise is None and self.channel is None and self.level_db is None

    @property
    def has_scenes(self) -> bool:
        """Whether each session has a file that says what was drawn for it."""
        return not self.is_dry or self.layout == "mix"


def recipe_of(where: str, values: Mapping[str, Any]) -> Recipe:
    """A recipe of what a TOML file (or ``simulation.json``) holds; `where` stands before an error.

    Raises
    ------
    ValueError : an unknown or missing key, a value out of range.
    """
    tables: dict[str, Any] = {
        key: make(cls, (f"{where}: [{key}]", values[key]))
        for key, cls in _TABLES.items()
        if isinstance(values.get(key), dict)
    }
    return make(Recipe, (where, {**values, **tables}))


def read_recipe(path_or_name: str | os.PathLike[str]) -> Recipe:
    """Read a recipe: a TOML file, or the name of one that stands in ``data_manifests/recipes``.

    Paths in it are relative to it.

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
    recipe = recipe_of(str(path), {"name": path.stem, **read_toml(path)})
    if recipe.rooms is not None and recipe.rooms.folder is not None:
        recipe = replace(recipe, rooms=replace(recipe.rooms, folder=str(path.parent / recipe.rooms.folder)))
    if recipe.noise is not None and recipe.noise.manifest is not None:
        recipe = replace(recipe, noise=replace(recipe.noise, manifest=str(path.parent / recipe.noise.manifest)))
    return recipe
