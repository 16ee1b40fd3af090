"""Rooms: a response from each speaker's place to the microphone, simulated by pyroomacoustics or measured by others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from featstore.simulation.recipe import Rooms

_AUDIO = {".wav", ".flac", ".ogg", ".aiff", ".aif"}
_REFLECTIONS = 3  # of this order are exact (image sources); later ones are traced rays, which know the T60 asked for
_SCATTERING = 0.1  # share of the sound that walls do not mirror but spread: furniture
_TRIES = 1000


class Response(NamedTuple):
    """What a click at a speaker's place is at the microphone; of energy 1, so that distance is no level."""

    taps: NDArray[np.float32]
    lead_samples: int  # before the direct sound, which thus stays where the dry sound was


def in_room(
    rooms: Rooms, speakers: list[str], rng: np.random.Generator, sample_rate_hz: int
) -> tuple[dict[str, Response], dict[str, Any]]:
    """Draw a room and a place in it for each speaker.

    Returns
    -------
    the responses, and what was drawn and measured: ``t60_s`` (that of the responses), ``asked_t60_s`` where simulated, …

    Raises
    ------
    ValueError : no such room, or no such place in it; a measured response cannot be read.
    """
    waves: Sequence[NDArray[np.floating[Any]]]
    if rooms.folder is None:
        waves, facts = _simulated(rooms, len(speakers), rng, sample_rate_hz)
    else:
        waves, facts = _measured(rooms.folder, len(speakers), rng, sample_rate_hz)
    responses = [response(wave) for wave in waves]
    measured = [t60_s(r.taps[r.lead_samples :], sample_rate_hz) for r in responses]
    return dict(zip(speakers, responses, strict=True)), {"t60_s": round(float(np.mean(measured)), 4), **facts}


def response(wave: NDArray[np.floating[Any]]) -> Response:
    """A response from the samples of one; its direct sound is the first peak within 20 dB of the largest.

    Source: ISO 3382-1, 5.3.3 (where a measured response begins).

    Raises
    ------
    ValueError : there is no sound in it.
    """
    size = np.abs(wave)
    if not size.any():
        raise ValueError("an impulse response without any sound")
    rises = int(np.argmax(size >= size.max() / 10))
    direct = rises + int(
        size[rises : rises + 8].argmax()
    )  # a band limit spreads a click: 0.5 ms at 16 kHz to its peak,
    first = max(direct - 32, 0)  # and 2 ms of its own before that
    taps = wave[first:] / np.sqrt(np.square(wave[first:], dtype=np.float64).sum())
    return Response(taps.astype(np.float32), direct - first)


def t60_s(taps: NDArray[np.floating[Any]], sample_rate_hz: int) -> float:
    """Reverberation time of a response that begins with its direct sound, in seconds.

    Schroeder's backward integral of the energy, a line through its fall from -5 to -25 dB, extended to 60 dB.

    Source: ISO 3382-1, 5.3.3 (T20).
    """
    left = np.cumsum(np.square(taps[::-1], dtype=np.float64))[::-1]
    level_db = 10 * np.log10(np.maximum(left / left[0], 1e-12))
    first, last = int(np.argmax(level_db < -5)), int(np.argmax(level_db < -25))
    if last - first < 2:  # it is over within two samples, or never falls so far
        return 0.0
    slope = np.polyfit(np.arange(first, last) / sample_rate_hz, level_db[first:last], 1)[0]
    return float(-60 / slope)


def check_rooms(rooms: Rooms, speakers: int) -> str:
    """See that rooms can be had, before any session is made; what the files of measured ones are called, and how long.

    Raises
    ------
    ValueError : pyroomacoustics is not installed; no folder, or none with responses enough.
    """
    if rooms.folder is not None:
        _rooms_for(rooms.folder, speakers)
        files = [path for found in measured_rooms(rooms.folder) for path in found]
        return repr([(path.relative_to(rooms.folder).as_posix(), path.stat().st_size) for path in files])
    try:
        import pyroomacoustics  # noqa: F401
    except ImportError:
        raise ValueError(
            "[rooms] needs pyroomacoustics, which is not installed; where whowhen was cloned: pip install -e '.[rooms]', "
            "or name a folder of measured responses (folder = …)"
        ) from None
    return ""


@cache
def measured_rooms(folder: str) -> list[list[Path]]:
    """The responses in a folder, by room: audio files that stand in the same folder are of one room."""
    rooms: dict[Path, list[Path]] = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() in _AUDIO and path.is_file():
            rooms.setdefault(path.parent, []).append(path)
    return list(rooms.values())


def _rooms_for(folder: str, speakers: int) -> list[list[Path]]:
    found = measured_rooms(folder)
    enough = [room for room in found if len(room) >= speakers]
    if not enough:
        raise ValueError(
            f"[rooms] folder {folder}: {len(found)} rooms with at most {max(map(len, found), default=0)} responses, "
            f"expected one with {speakers} or more, one for each speaker; a room is a folder of audio files"
        )
    return enough


def _measured(
    folder: str, count: int, rng: np.random.Generator, sample_rate_hz: int
) -> tuple[list[NDArray[np.float32]], dict[str, Any]]:
    rooms = _rooms_for(folder, count)
    room = rooms[rng.integers(len(rooms))]
    waves, names = [], []
    for k in rng.choice(len(room), count, replace=False):
        try:
            wave, rate = soundfile.read(room[k], dtype="float32", always_2d=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"impulse response {room[k]}: {error}") from None
        if not len(wave) or not np.isfinite(wave).all():
            raise ValueError(f"impulse response {room[k]}: no samples, or some that are no numbers")
        waves.append(soxr.resample(wave[:, 0], rate, sample_rate_hz))  # of an array, one microphone
        names.append(room[k].relative_to(folder).as_posix())
    return waves, {"responses": names}


def _simulated(
    rooms: Rooms, count: int, rng: np.random.Generator, sample_rate_hz: int
) -> tuple[list[NDArray[np.float64]], dict[str, Any]]:
    import pyroomacoustics as pra

    t60 = float(rng.uniform(*rooms.t60_s))
    sides = (rooms.length_m, rooms.width_m, rooms.height_m)
    for _ in range(_TRIES):
        size_m = np.array([rng.uniform(*side) for side in sides])
        try:
            absorption, _ = pra.inverse_sabine(t60, size_m)
            break
        except ValueError:  # nothing absorbs enough to make so large a room so dry
            continue
    else:
        raise ValueError(
            f"[rooms] no room of the size asked for can have t60_s = {t60:.2f}: larger t60_s, smaller rooms"
        )
    # It draws from generators of its own, and how many threads add up decides the last bits of the sum.
    pra.random.seed(int(rng.integers(2**63)))
    pra.constants.set("num_threads", 1)
    room = pra.ShoeBox(
        size_m,
        fs=sample_rate_hz,
        materials=pra.Material(absorption, _SCATTERING),
        max_order=_REFLECTIONS,
        ray_tracing=True,
        air_absorption=False,
    )
    microphone, places = _places(rooms, size_m, count, rng)
    room.add_microphone(microphone)
    for place in places:
        room.add_source(place)
    room.compute_rir()
    distances = np.linalg.norm(places - microphone, axis=1)
    facts = {"asked_t60_s": t60, "size_m": size_m.tolist(), "distance_m": distances.tolist()}
    return [np.asarray(wave) for wave in room.rir[0]], {k: np.round(v, 4).tolist() for k, v in facts.items()}


def _places(
    rooms: Rooms, size_m: NDArray[np.float64], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The microphone's place, shape (3,), and the speakers', shape (count, 3): not at a wall, floor or ceiling."""
    for _ in range(_TRIES):
        microphone = rng.uniform([0.1, 0.1, 0.2], [0.9, 0.9, 0.6]) * size_m
        places = rng.uniform([0.1, 0.1, 0.3], [0.9, 0.9, 0.7], (_TRIES, 3)) * size_m
        distances = np.linalg.norm(places - microphone, axis=1)
        fits = (distances >= rooms.distance_m[0]) & (distances <= rooms.distance_m[1])
        if fits.sum() >= count:
            return microphone, places[fits][:count]
    low, high = rooms.distance_m
    raise ValueError(
        f"[rooms] no {count} places {low:g} to {high:g} m from a microphone in a room of "
        f"{' × '.join(f'{side:.1f}' for side in size_m)} m: another distance_m, or larger rooms"
    )
