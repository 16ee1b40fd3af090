"""What a user names: files, patterns, folders, manifests, standard input, utterances of a store."""

from __future__ import annotations

import glob
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from featstore import Store, Utterance
from featstore.corpora.manifest import read_manifest
from featstore.store.layout import is_store

#: What is taken for audio in a folder; a file that is named may end in anything.
SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc .mka .m4a .mp4 .aac .wma .webm".split()
)


@dataclass(frozen=True)
class Recording:
    """One thing to diarize: what it is called, and a file, a part of a file, or the id of an utterance in a store."""

    name: str
    source: str | Utterance


def recordings_of(named: Sequence[str], temporary: Path) -> list[Recording]:
    """Every recording that these words name, in order, each once.

    Parameters
    ----------
    temporary : a folder for what comes on standard input.

    Raises
    ------
    ValueError : a word names nothing; two recordings would be written to the same file.
    """
    found: dict[str, Recording] = {}
    for word in named:
        for recording in _named(word, temporary):
            found.setdefault(str(recording.source), recording)
    return _told_apart(list(found.values()))


def stored(store: Store, named: Sequence[str]) -> list[Recording]:
    """Utterances of a store by id or pattern; all of them where none is named.

    Raises
    ------
    ValueError : nothing there has such an id.
    """
    ids = list(dict.fromkeys(id for word in named or ["*"] for id in _matching(store, word)))
    return _told_apart([Recording(_plain(id), id) for id in ids])


def _matching(store: Store, word: str) -> list[str]:
    found = [word] if word in store else [id for id in store.ids if fnmatchcase(id, word)]
    if not found:
        there = ", ".join(store.ids[:3]) + (", …" if len(store) > 3 else "")
        raise ValueError(f"{store.address}: no utterance {word!r}; with --store, name ids or patterns of ids ({there})")
    return found


def _named(word: str, temporary: Path) -> Iterator[Recording]:
    path = Path(word)
    if word == "-":
        yield Recording("stdin", str(_from_stdin(temporary)))
    elif path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files and is_store(path):
            raise ValueError(f"{word}: is a store; take features from it with --store {word}")
        if not files:
            raise ValueError(f"{word}: no audio in this folder (looked for {', '.join(sorted(SUFFIXES))})")
        yield from (Recording(_plain(str(file.relative_to(path).with_suffix(""))), str(file)) for file in files)
    elif path.suffix == ".jsonl":
        yield from (Recording(_plain(u.id), u) for u in read_manifest(path))
    elif path.exists():
        yield Recording(_plain(path.stem), str(path))
    elif glob.has_magic(word):
        files = sorted(Path(p) for p in glob.glob(word, recursive=True) if os.path.isfile(p))
        if not files:
            raise ValueError(f"{word}: no file matches this pattern")
        yield from (Recording(_plain(file.stem), str(file)) for file in files)
    else:
        raise ValueError(f"{word}: no such file, folder or pattern")


def _from_stdin(temporary: Path) -> Path:
    if sys.stdin.isatty():
        raise ValueError("-: standard input is a terminal; pipe an audio file into it (… | whowhen diarize -)")
    path = temporary / "stdin"
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def _plain(name: str) -> str:
    """A name that is one file's: folders become part of it."""
    return name.replace("\\", "/").strip("/").replace("/", "-") or "recording"


def _told_apart(recordings: list[Recording]) -> list[Recording]:
    """The same with names that differ: of those that share one, each gets its folder's name before its own."""
    shared = {name for name, count in Counter(r.name.casefold() for r in recordings).items() if count > 1}
    named = []
    for r in recordings:
        source = r.source.audio if isinstance(r.source, Utterance) else r.source
        name = r.name if r.name.casefold() not in shared else f"{Path(source).resolve().parent.name}-{r.name}"
        named.append(Recording(name, r.source))
    for name, count in Counter(r.name.casefold() for r in named).items():
        if count > 1:
            raise ValueError(
                f"{count} recordings would be written as {name!r}; diarize them into different --out folders"
            )
    return named
