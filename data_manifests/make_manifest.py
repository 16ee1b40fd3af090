"""Makes a manifest for a corpus on your disk: README.md beside this file says which, and where to get them.

    python data_manifests/make_manifest.py speakers FOLDER --split train --out FOLDER/train.jsonl
    python data_manifests/make_manifest.py ami AMICORPUS --rttms AMI-diarization-setup/only_words/rttms --out ami.jsonl

`speakers` takes folders laid out as SPEAKER/RECORDING/FILE, which LibriSpeech and VoxCeleb both are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import soundfile

_HERE = Path(__file__).resolve().parent
_AUDIO = {".flac", ".wav", ".opus", ".ogg", ".mp3", ".m4a"}

Row = dict[str, object]


def speaker_rows(folder: Path, split: str, relative_to: Path) -> Iterator[Row | str]:
    """One row a file under SPEAKER/RECORDING; a text instead for each file that libsndfile cannot read.

    Raises
    ------
    ValueError : the folder holds no audio at that depth.
    """
    files = sorted(path for path in folder.glob("*/*/*") if path.suffix.lower() in _AUDIO)
    if not files:
        raise ValueError(f"{folder}: expected SPEAKER/RECORDING/FILE with audio, found none; is it the right folder?")
    for path in files:
        speaker, recording, name = path.relative_to(folder).parts
        id = f"{speaker}/{recording}/{Path(name).stem}"
        yield _row(path, relative_to, {"speaker": speaker, "session_id": f"{speaker}/{recording}", "utt_id": id}, split)


def ami_rows(corpus: Path, rttms: Path, relative_to: Path, mic: str = "Mix-Headset") -> Iterator[Row | str]:
    """One row a meeting of AMI's official split, in its order; a text for each whose audio or RTTM is missing."""
    for split in ("train", "dev", "test"):
        for meeting in (_HERE / "ami" / f"{split}.meetings.txt").read_text().split():
            audio, rttm = corpus / meeting / "audio" / f"{meeting}.{mic}.wav", rttms / split / f"{meeting}.rttm"
            if not rttm.is_file():
                yield f"{rttm}: no such file"
                continue
            facts = {"label": "infer", "rttm_filepath": _relative(rttm, relative_to)}
            yield _row(audio, relative_to, {**facts, "session_id": meeting, "utt_id": meeting}, split)


def _row(path: Path, relative_to: Path, facts: Row, split: str) -> Row | str:
    try:
        duration_s = soundfile.info(path).duration
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        return f"{path}: {' '.join(str(error).split())}"
    row: Row = {"audio_filepath": _relative(path, relative_to), "offset": 0.0, "duration": round(duration_s, 6)}
    return row | facts | ({"split": split} if split else {})


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def main() -> int:
    """Write the manifest; 1 where files were left out, 2 where there is nothing to write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    speakers = kinds.add_parser("speakers", help="SPEAKER/RECORDING/FILE: LibriSpeech, VoxCeleb")
    speakers.add_argument("folder", type=Path)
    speakers.add_argument("--split", default="", help="train, dev, test or a name of yours")
    ami = kinds.add_parser("ami", help="the AMI corpus with its official split")
    ami.add_argument("folder", type=Path)
    ami.add_argument("--rttms", type=Path, required=True, help="folder with train, dev and test")
    ami.add_argument("--mic", default="Mix-Headset", help="or Array1-01, a distant microphone")
    for kind in (speakers, ami):
        kind.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    parent = args.out.resolve().parent
    if args.kind == "ami":
        found = list(ami_rows(args.folder, args.rttms, parent, args.mic))
    else:
        try:
            found = list(speaker_rows(args.folder, args.split, parent))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    problems = [item for item in found if isinstance(item, str)]
    rows = [item for item in found if not isinstance(item, str)]
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not rows:
        print(f"error: nothing of {args.folder} can be read", file=sys.stderr)
        return 2
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{args.out}: {len(rows)} rows, {len(problems)} left out")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
