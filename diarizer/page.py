"""One page a recording: who spoke when, to look at and to listen to, in one file that needs nothing else."""

from __future__ import annotations

import base64
import io
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import soundfile as sf
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from diarizer.answer import Answer
from diarizer.sound import Sound
from featstore.files import write_atomically

#: Longer sound lies beside the page: half an hour is 5 MB, a third more inside of it.
EMBEDDED_S = 1800.0
_RATE_HZ, _BLOCK = 16000, 16000 * 60
_BINS = 20_000
_COLOURS = 8  # that evaluation/page.css has
# 24 kbit/s, the same throughout: a browser finds its place in it exactly.
_MP3: dict[str, Any] = {
    "format": "MP3",
    "subtype": "MPEG_LAYER_III",
    "compression_level": 0.9,
    "bitrate_mode": "CONSTANT",
}


def write_page(path: Path, answer: Answer, sound: Sound | None) -> None:
    """Write the page, and beside it ``*.mp3`` where the sound is too long to be inside.

    Parameters
    ----------
    sound : None where there is none, but features from a store.
    """
    source = None
    if sound is not None and answer.duration_s <= EMBEDDED_S:
        inside = io.BytesIO()
        _encode(inside, sound)
        source = "data:audio/mpeg;base64," + base64.b64encode(inside.getvalue()).decode()
    elif sound is not None:
        beside = path.with_name(path.stem + ".mp3")
        _encode(beside, sound)
        source = quote(beside.name)
    write_atomically(path, render(answer, source).encode())


def _encode(out: Path | io.BytesIO, sound: Sound) -> None:
    with sf.SoundFile(out, "w", _RATE_HZ, 1, **_MP3) as file:
        for piece in sound.pieces(_RATE_HZ, _BLOCK):
            for at in range(0, len(piece), _RATE_HZ):  # the encoder takes little at a time on its stack
                file.write(piece[at : at + _RATE_HZ].clip(-1, 1))


def render(answer: Answer, sound: str | None) -> str:
    """The page as HTML; `sound` is what its player plays."""
    told = answer.to_json()
    speakers = [
        row
        | {
            "colour": f"--p{k % _COLOURS}",
            "speaking": _clock(row["speaking_s"]),
            "longest": f"{row['longest_s']:.1f} s",
        }
        for k, row in enumerate(answer.speakers())
    ]
    turns = zip(answer.turns, answer.turns.speaker.tolist(), answer.sure.tolist(), strict=True)
    data = {
        "duration": round(answer.duration_s, 3),
        "speakers": [{"name": row["name"], "colour": row["colour"]} for row in speakers],
        "turns": [[round(t.start_s, 2), round(t.end_s, 2), k, round(sure, 2)] for t, k, sure in turns],
        "overlaps": np.round(answer.overlaps(), 2).tolist(),
        "energy": _bars(answer.energy),
    }
    environment = Environment(
        # The report's looks: one place has the colours.
        loader=ChoiceLoader([PackageLoader("diarizer", "."), PackageLoader("evaluation", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.j2")
    return page.render(
        answer=answer,
        duration=_clock(answer.duration_s),
        speakers=speakers,
        speech_s=told["speech_s"],
        overlap_s=told["overlap_s"],
        sound=sound,
        data=data,
        version=metadata.version("whowhen"),
    )


def _bars(energy: NDArray[np.float32] | None) -> list[int]:
    """Loudness from 40 dB under the loudest (0) to it (255), at most `_BINS` numbers."""
    if energy is None or not len(energy):
        return []
    bins = np.array([part.max() for part in np.array_split(energy, min(len(energy), _BINS))])
    level = 20 * np.log10(np.maximum(bins / max(float(bins.max()), 1e-9), 1e-2))
    return np.round(255 * (1 + level / 40)).astype(int).tolist()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
