"""Recipes of simulated sessions: a TOML file's keys, checked."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

#: What recipes and splits may be called: their names become parts of file names.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RANGES = ("speakers", "duration_s", "overlap", "silence", "noise_snr_db")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What sessions are asked for. A TOML recipe has these keys; ranges are ``[low, high]`` or one number.

    Attributes
    ----------
    name : of the recipe; the file's name if not given.
    sessions : how many; or a table ``{train = 24, dev = 6}`` with a count for each split.
    speakers : number of speakers in a session, drawn evenly from the range.
    overlap : layout "conversation": time in which two speak / time in which anybody speaks (NeMo's definition).
        Layout "pair": length of the overlap / length of the shorter of the two utterances.
    duration_s : of a session; not for layout "pair", whose sessions are as long as their speech.
    silence : time in which nobody speaks / session. Pauses inside utterances count.
    layout : "conversation", or "pair": one utterance each of two speakers, the second begins before the first ends.
    turn_prob : probability that another speaker goes on after a sentence (NeMo's default).
    dominance_sd : spread between speakers' shares of the sentences, around 1/speakers (NeMo's default).
    max_turn_s : utterances longer than this are cut at their pauses.
    pause_s : pauses longer than this end a turn; shorter ones belong to it.
    level_sd_db : spread of the speakers' levels.
    noise_snr_db : noise under the whole session, dB below speech; None for none.
    min_utterances : speakers with fewer are left out. Utterances come again when a speaker has no other left.
    sample_rate_hz, audio_format : of the sessions; "flac", or "opus" (Ogg Opus, 12 kbit/s).
    """

    name: str
    sessions: int | dict[str, int]
    speakers: tuple[int, int]
    overlap: tuple[float, float]
    duration_s: tuple[float, float] | None = None
    silence: tuple[float, float] = (0.15, 0.15)
    layout: str = "conversation"
    turn_prob: float = 0.875
    dominance_sd: float = 0.11
    max_turn_s: float = 15.0
    pause_s: float = 0.3
    level_sd_db: float = 2.0
    noise_snr_db: tuple[float, float] | None = None
    min_utterances: int = 1
    sample_rate_hz: int = 16_000
    audio_format: str = "flac"

    def __post_init__(self) -> None:
        def need(good: bool, key: str, expected: str) -> None:
            if not good:
                raise ValueError(f"recipe {self.name!r}: {key} must be {expected}, found {getattr(self, key)!r}")

        for key in _RANGES:
            value = getattr(self, key)
            pair = (value, value) if _number(value) else tuple(value) if isinstance(value, (list, tuple)) else value
            if pair is not None:
                need(
                    isinstance(pair, tuple) and len(pair) == 2 and all(map(_number, pair)) and pair[0] <= pair[1],
                    key,
                    "a number or [low, high]",
                )
            object.__setattr__(self, key, pair)
        for key in ("turn_prob", "dominance_sd", "max_turn_s", "pause_s", "level_sd_db"):
            need(_number(getattr(self, key)) and getattr(self, key) >= 0, key, "a number, 0 or more")
        for key in ("min_utterances", "sample_rate_hz"):
            need(is_count(getattr(self, key)), key, "a whole number of 1 or more")
        safe = isinstance(self.name, str) and SAFE_NAME.fullmatch(self.name) is not None
        need(safe, "name", "letters, digits, '.', '_' and '-'")
        need(self.layout in ("conversation", "pair"), "layout", '"conversation" or "pair"')
        need(self.audio_format in ("flac", "opus"), "audio_format", '"flac" or "opus"')
        rates = (8_000, 12_000, 16_000, 24_000, 48_000)
        need(self.audio_format == "flac" or self.sample_rate_hz in rates, "sample_rate_hz", f"one of {rates} for opus")
        counts = self.sessions.values() if isinstance(self.sessions, dict) else [self.sessions]
        need(bool(counts) and all(map(is_count, counts)), "sessions", "a whole number of 1 or more, or a table of them")
        need(all(map(is_count, self.speakers or (0,))), "speakers", "whole numbers of 1 or more")
        top = 0.5 if self.layout == "conversation" else 1.0
        need(self.overlap is not None and 0 <= self.overlap[0] <= self.overlap[1] <= top, "overlap", f"0 to {top}")
        need(self.silence is not None and 0 <= self.silence[0] <= self.silence[1] <= 0.9, "silence", "0 to 0.9")
        need(0 <= self.turn_prob <= 1, "turn_prob", "0 to 1")
        need(min(self.max_turn_s, self.pause_s) > 0, "pause_s" if self.pause_s <= 0 else "max_turn_s", "more than 0")
        if self.layout == "pair":
            need(self.speakers == (2, 2), "speakers", '2 where layout is "pair"')
        else:
            need(self.duration_s is not None and self.duration_s[0] > 0, "duration_s", "more than 0 s")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def is_count(value: object) -> bool:
    """Whether `value` is a whole number of 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


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
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from None
    keys = {key.name for key in fields(Recipe)}
    unknown = sorted(set(values) - keys)
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; a recipe has: {', '.join(sorted(keys))}")
    missing = [key for key in ("sessions", "speakers", "overlap") if key not in values]
    if missing:
        raise ValueError(f"{path}: missing key {missing[0]!r}")
    return Recipe(**{"name": path.stem, **values})
