"""A store for other toolkits: lhotse's cuts, Kaldi's archives; their own libraries write them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

import featstore
from featstore.store.layout import StoreError
from featstore.store.reader import Store, store_utterances
from featstore.types import Frames, Turn, Utterance

if TYPE_CHECKING:
    from lhotse import CutSet


def to_lhotse(store: Store, feature: str | None = None) -> CutSet:
    """The utterances of a store or view as lhotse cuts, whose features are read from the store where it lies.

    A cut is as long as its frames; a supervision is one turn, or the whole of an utterance of one speaker; `custom` holds
    split and source. To keep the cuts in files that lhotse reads alone: `export_lhotse`.

    Parameters
    ----------
    feature : which; may be left out where the store has one.

    Raises
    ------
    ValueError : lhotse is not installed, or which feature is not said.
    """
    try:
        from lhotse import CutSet, MonoCut, SupervisionSegment
        from lhotse.features.base import Features
    except ImportError:
        raise _not_installed("lhotse") from None
    name = _feature(store, feature)
    spec, storage, cuts = store.features[name], _storage(), []
    for u in store_utterances(store):
        if u.id not in store.index(name).rows:
            continue
        frames = store.num_frames(name, u.id)
        long_s = round(frames * spec.grid.step_s, 6)
        features = Features(
            name, frames, spec.dim, spec.grid.step_s, spec.sample_rate_hz, 0.0, long_s, storage, store.address,
            f"{name}/{u.id}", u.recording, 0,
        )  # fmt: skip
        segments = [
            SupervisionSegment(
                f"{u.id}-{k}", u.recording, t.start_s, round(t.end_s - t.start_s, 6), 0, speaker=t.speaker
            )
            for k, t in enumerate(_turns(u, long_s))
        ]
        cut = MonoCut(u.id, 0.0, long_s, 0, segments, features, custom={"split": u.split, "source": u.audio})
        cuts.append(cut)
    return CutSet.from_cuts(cuts)


def _turns(u: Utterance, long_s: float) -> list[Turn]:
    turns = u.turns or ((Turn(0.0, long_s, u.speaker),) if u.speaker is not None else ())
    return [Turn(t.start_s, min(t.end_s, long_s), t.speaker) for t in turns if t.start_s < long_s]


class _Storage(str):
    """lhotse's name for how these features are read. A process that unpickles it learns how."""

    def __reduce__(self) -> tuple[Callable[[], str], tuple[()]]:
        return _storage, ()


def _storage() -> str:
    from lhotse.features.io import FeaturesReader, register_reader

    opened: dict[str, Store] = {}

    class StoreReader(FeaturesReader):  # type: ignore[misc]  # lhotse has no types
        """Frames of a store, by feature/id."""

        name = "featstore"

        def __init__(self, storage_path: str, **_: Any) -> None:
            self._path = str(storage_path)

        def read(self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None) -> Frames:
            if self._path not in opened:
                opened[self._path] = featstore.open(self._path)
            feature, _, id = key.partition("/")
            return opened[self._path].frames(feature, id, left_offset_frames, right_offset_frames).copy()

    register_reader(StoreReader)
    return _Storage(StoreReader.name)


def export_lhotse(
    store: Store,
    folder: str | PathLike[str],
    feature: str | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write cuts.jsonl.gz and features.h5, which lhotse reads without this project.

    Raises
    ------
    ValueError : as `to_lhotse`; the folder holds files already.
    """
    cuts = to_lhotse(store, feature)
    from lhotse import CutSet, NumpyHdf5Writer
    from lhotse.utils import fastcopy

    with (
        _folder(folder) as target,
        NumpyHdf5Writer(target / "features.h5") as out,
        CutSet.open_writer(target / "cuts.jsonl.gz") as listed,
    ):
        for done, cut in enumerate(cuts, start=1):
            key = out.write(quote(cut.id, safe=""), cut.load_features())  # in HDF5, a slash would make a group
            kept = fastcopy(cut.features, storage_type=out.name, storage_path=str(out.storage_path), storage_key=key)
            listed.write(fastcopy(cut, features=kept))
            progress(done, len(cuts))


def export_kaldi(
    store: Store,
    folder: str | PathLike[str],
    feature: str | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write feats.ark and feats.scp (float32), utt2spk, spk2utt, utt2dur and utt2split, sorted as Kaldi wants them.

    Where no single speaker is known, the recording stands in utt2spk, as in Kaldi's own recipes.

    Raises
    ------
    ValueError : kaldiio is not installed, which feature is not said, the folder holds files already, or a name holds
        white space.
    """
    try:
        from kaldiio import WriteHelper
    except ImportError:
        raise _not_installed("kaldiio") from None
    name = _feature(store, feature)
    found = sorted((u for u in store_utterances(store) if u.id in store.index(name).rows), key=lambda u: u.id.encode())
    voices = {u.id: u.speaker or u.recording for u in found}
    for text in (*voices, *voices.values(), *(u.split for u in found)):
        if text and text.split() != [text]:
            raise ValueError(f"{store.address}: {text!r} holds white space, which ends a name for Kaldi")
    spoken: dict[str, list[str]] = {}
    for id, voice in voices.items():
        spoken.setdefault(voice, []).append(id)
    tables = {
        "utt2spk": voices,
        "spk2utt": {voice: " ".join(ids) for voice, ids in sorted(spoken.items(), key=lambda item: item[0].encode())},
        "utt2dur": {u.id: f"{u.duration_s:.3f}" for u in found},
        "utt2split": {u.id: u.split or "-" for u in found},
    }
    with _folder(folder) as target:
        with WriteHelper(f"ark,scp:{target / 'feats.ark'},{target / 'feats.scp'}") as out:
            for done, u in enumerate(found, start=1):
                out(u.id, store.frames(name, u.id).astype(np.float32))
                progress(done, len(found))
        for file, rows in tables.items():
            (target / file).write_text("".join(f"{key} {value}\n" for key, value in rows.items()), encoding="utf-8")


@contextmanager
def _folder(folder: str | PathLike[str]) -> Iterator[Path]:
    """An empty folder, and empty again where it is left half filled."""
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target}: exists already; choose another folder or empty it")
    target.mkdir(parents=True, exist_ok=True)
    try:
        yield target
    except BaseException:
        for path in target.iterdir():
            path.unlink()
        raise


def _feature(store: Store, feature: str | None) -> str:
    if feature is None and len(store.features) != 1:
        raise StoreError(
            f"{store.address}: say which feature (--feature NAME): {', '.join(store.features) or 'it has none'}"
        )
    name = feature or next(iter(store.features))
    store.index(name)  # says what is there when it is not
    return name


def _not_installed(package: str) -> ValueError:
    return ValueError(
        f"this needs {package}, which is not installed; where whowhen was cloned: pip install -e '.[toolkits]'"
    )
