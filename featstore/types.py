"""The nouns everything else speaks in: Turn, Utterance, FrameGrid, FeatureSpec."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A feature's name becomes a folder and a Zarr group: keep it to what every file system and reader takes.
_FEATURE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_ID_CHARS = 1024

#: Frames as a store holds them, (frames, dim).
Frames = NDArray[np.float16 | np.float32 | np.int16]

#: Times within a billionth of a frame of a frame's centre are on it: 0.12 / 0.08 is not 1.5 in binary.
FRAME_TOLERANCE = 1e-9


def _finite(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{owner}: {name} must be a finite number, found {value!r}")


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker talking without a stop: ``[start_s, end_s)`` in seconds from the utterance's start."""

    start_s: float
    end_s: float
    speaker: str

    def __post_init__(self) -> None:
        _finite("turn", start_s=self.start_s, end_s=self.end_s)
        if self.end_s < self.start_s:
            raise ValueError(f"turn of {self.speaker!r}: ends at {self.end_s} s before it starts at {self.start_s} s")


@dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of audio and what is known about it.

    Attributes
    ----------
    id : unique in a store; may contain ``/`` but no ``..`` part.
    audio : path (or ``datasets:`` reference) of the file that holds it.
    start_s, duration_s : where it lies in that file, in seconds. A duration of ``nan`` means “to the end of the file”.
    recording : the session it comes from; splits are made by recording.
    speaker : the one speaker, or None where several talk (then `turns` says who and when) or nobody knows.
    split : "train", "dev", "test" or a name of your own; "" where none is given.
    turns : who speaks when, in seconds from the utterance's start; empty for single-speaker utterances.
    """

    id: str
    audio: str
    start_s: float
    duration_s: float
    recording: str
    speaker: str | None = None
    split: str = ""
    turns: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        check_id(self.id)
        _finite(f"utterance {self.id!r}", start_s=self.start_s)
        if self.start_s < 0:
            raise ValueError(f"utterance {self.id!r}: start_s must be 0 or more, found {self.start_s}")
        texts = {"audio": self.audio, "recording": self.recording, "speaker": self.speaker or "", "split": self.split}
        for name, text in (*texts.items(), *(("speaker of a turn", t.speaker) for t in self.turns)):
            if len(text) > _MAX_ID_CHARS:
                raise ValueError(f"utterance {self.id!r}: {name} has {len(text)} characters, at most {_MAX_ID_CHARS}")
            try:
                text.encode()
            except UnicodeEncodeError:  # what Python makes of a file name that is not UTF-8
                raise ValueError(
                    f"utterance {self.id!r}: {name} {text!r} holds half a surrogate pair, which no table can hold; rename it"
                ) from None
        if self.duration_s <= 0 or math.isinf(self.duration_s):
            raise ValueError(f"utterance {self.id!r}: duration_s must be more than 0, found {self.duration_s}")


def check_id(id: str) -> None:
    """Refuse ids that could leave a folder or break a table.

    Raises
    ------
    ValueError : empty, longer than 1024 characters, absolute, with a control character, half a surrogate pair (no
        file holds one as UTF-8) or a ``..`` part.
    """
    if not id or len(id) > _MAX_ID_CHARS:
        raise ValueError(f"id must have 1 to {_MAX_ID_CHARS} characters, found {len(id)}")
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in id):
        raise ValueError(f"id {id!r} holds a control character or half a surrogate pair")
    if re.match(r"[/\\]|[A-Za-z]:[/\\]", id) or ".." in re.split(r"[/\\]", id):
        raise ValueError(f"id {id!r} points outside its root: ids are relative and have no '..' part")


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """Where frames lie in time: frame ``i`` is centred on ``first_centre_s + i * step_s`` seconds."""

    first_centre_s: float
    step_s: float

    def __post_init__(self) -> None:
        _finite("frame grid", first_centre_s=self.first_centre_s, step_s=self.step_s)
        if self.step_s <= 0:
            raise ValueError(f"frame grid: step_s must be more than 0, found {self.step_s}")

    def centres_s(self, start: int, stop: int) -> NDArray[np.float64]:
        """Centres in seconds of frames ``start`` to ``stop`` (exclusive), shape ``(stop - start,)``."""
        return self.first_centre_s + self.step_s * np.arange(start, stop, dtype=np.float64)

    def index(self, time_s: float) -> int:
        """The first frame whose centre is at or after `time_s` (never below 0)."""
        return int(self.active(time_s, time_s)[0])

    def active(self, start_s: ArrayLike, end_s: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The frames of turns: a frame is active when its centre lies in a turn, ``[start_s, end_s)``.

        Returns
        -------
        first, last : of each turn, in the shape of the times: its frames are ``first:last``, none where these are equal.
        """
        edges = [(np.asarray(s, np.float64) - self.first_centre_s) / self.step_s for s in (start_s, end_s)]
        # The bound keeps a time that no frame number can hold from becoming a negative one.
        first, last = (np.ceil(edge - FRAME_TOLERANCE).clip(0, 1 << 62).astype(np.int64) for edge in edges)
        return first, last


#: Mimi's 12.5 Hz frames: 1920 samples at 24 kHz each; a frame's centre is the middle of its samples.
MIMI_GRID = FrameGrid(first_centre_s=0.04, step_s=0.08)


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What a feature is, exactly enough to refuse anything else under the same name.

    Attributes
    ----------
    name : of the feature and its folder ("mimi", "titanet", "probe", …).
    dim, dtype : of a frame; the store keeps float16 or float32, and whole numbers (codes of a codec) as int16.
    sample_rate_hz : of the audio the extractor takes.
    grid : where frames lie in time.
    model : what computed it, for people ("mimi (moshi)", "TitaNet-L (NeMo)", …).
    weights_sha256 : hex digest of the weights; "" only where there are none.
    settings : everything else that changes the numbers. ``settings["weights"]`` says where the weights are
        from ("hf:…", "file", "demo", "random:0"); `trained` reads it.
    """

    name: str
    dim: int
    dtype: str
    sample_rate_hz: int
    grid: FrameGrid
    model: str
    weights_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _FEATURE_NAME.fullmatch(self.name):
            raise ValueError(
                f"feature name {self.name!r}: use 1 to 64 of a-z 0-9 . _ - and start with a letter or digit"
            )
        if not 1 <= self.dim <= 65536:
            raise ValueError(f"feature {self.name!r}: dim must be 1 to 65536, found {self.dim}")
        if self.dtype not in ("float16", "float32", "int16"):
            raise ValueError(f"feature {self.name!r}: dtype must be float16, float32 or int16, found {self.dtype!r}")
        if self.sample_rate_hz <= 0:
            raise ValueError(f"feature {self.name!r}: sample_rate_hz must be more than 0, found {self.sample_rate_hz}")
        # One JSON round trip, so that a spec read back compares equal to the one written (tuples become lists).
        object.__setattr__(self, "settings", json.loads(json.dumps(dict(self.settings))))

    @property
    def fingerprint(self) -> str:
        """16 hex digits over every attribute: equal fingerprints, equal features."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def whole(self) -> bool:
        """Whether frames are whole numbers that name things (codes), so that no mean of them says anything."""
        return self.dtype == "int16"

    @property
    def warning(self) -> str | None:
        """What must stand beside every number made from this feature, or None for properly trained weights."""
        weights = str(self.settings.get("weights", ""))
        if weights.startswith("random:"):
            return f"{self.name}: UNTRAINED weights ({weights}): its numbers say nothing about {self.model}"
        if weights == "demo":
            return f"{self.name}: small demo weights: its numbers say nothing about the published {self.model}"
        return None

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeatureSpec:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError : a key is missing, unknown or of the wrong type.
        """
        try:
            grid = FrameGrid(**data["grid"])
            for name, kind in (("name", str), ("dim", int), ("dtype", str), ("sample_rate_hz", int), ("model", str)):
                if type(data[name]) is not kind:
                    raise TypeError(f"{name} must be {kind.__name__}, found {data[name]!r}")
            return cls(**{**data, "grid": grid})
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a feature spec: {error}") from None


@dataclass(frozen=True, slots=True, eq=False)
class Codebooks:
    """Of a feature of codes: books of vectors, and how each comes into the codec's own space.

    Attributes
    ----------
    books : (n_q, bins, inner) float32.
    projections : (several, dim, inner) float32, without bias.
    projection_of : (n_q,) int32, the projection of each book.
    """

    books: NDArray[np.float32]
    projections: NDArray[np.float32]
    projection_of: NDArray[np.int32]

    def __post_init__(self) -> None:
        books, projections, of = self.books, self.projections, self.projection_of
        types = [array.dtype.str for array in (books, projections, of)] == ["<f4", "<f4", "<i4"]
        shapes = books.ndim == projections.ndim == 3 and books.shape[2] == projections.shape[2]
        if not types or not shapes or of.shape != books.shape[:1] or not ((of >= 0) & (of < len(projections))).all():
            raise ValueError(
                "codebooks: expected books (n_q, bins, inner) and projections (several, dim, inner) float32, "
                f"projection_of (n_q,) int32; found {books.shape}, {projections.shape}, {of.shape}"
            )

    @property
    def table(self) -> NDArray[np.float32]:
        """(n_q, bins, dim): what each code adds to its frame's vector in the codec's own space."""
        wide = self.projections.astype(np.float64)[self.projection_of]
        folded: NDArray[np.float64] = np.matmul(self.books.astype(np.float64), wide.transpose(0, 2, 1))
        return folded.astype(np.float32)

    @property
    def sha256(self) -> str:
        """Hex digest over names, shapes and bytes, the same on every machine."""
        digest = hashlib.sha256()
        for name, array in self.arrays().items():
            digest.update(f"{name} {array.shape} {array.dtype.str}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All three by name, contiguous."""
        named = {"books": self.books, "projections": self.projections, "projection_of": self.projection_of}
        return {name: np.ascontiguousarray(array) for name, array in named.items()}
