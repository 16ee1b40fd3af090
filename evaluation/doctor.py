"""What a scorer must survive on a reference before its numbers are believed.

Everything here has a known answer: a reference against itself is perfect, in other channels it stays perfect under a
mapping, through frames it loses what a frame grid must lose, and AMI has published totals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.diarization import DiarizationErrors, score, score_recording
from evaluation.frames import floor
from evaluation.turns import Turns
from featstore.types import FrameGrid

Level = Literal["ok", "info", "warning", "error"]

#: Seconds of a training example, and so of the crops that arrival order is looked at in.
CROP_S = 90.0

#: Frame grids of the floor: Mimi's latents, and its transformer before the learnt downsampling.
GRIDS = {"12.5 Hz": FrameGrid(0.04, 0.08), "25 Hz": FrameGrid(0.02, 0.04)}

#: Collar on each side in seconds, and what the conventions call it.
COLLARS = {0.25: "md-eval -c 0.25 = pyannote collar=0.5", 0.125: "md-eval -c 0.125 = pyannote collar=0.25"}

# AMI, Full-corpus-ASR partition, only_words references, speaker time over whole recordings.
# Source: BUTSpeechFIT/AMI-diarization-setup (Landini et al., arXiv 2012.14952).
_AMI = re.compile(r"(EN|ES|IB|IN|IS|TS)\d{4}[a-e]?")
_AMI_TEST = frozenset(f"{m}{part}" for m in ("ES2004", "IS1009", "TS3003", "EN2002") for part in "abcd")
_AMI_DEV = frozenset(f"{m}{part}" for m in ("ES2011", "IS1008", "TS3004") for part in "abcd") | frozenset(
    ("IB4001", "IB4002", "IB4003", "IB4004", "IB4010", "IB4011")
)
_AMI_TOTALS = {"test": (16, 30_713.92), "dev": (18, 31_558.66), "train": (136, 272_742.44)}
_AMI_TOLERANCE_S = 0.1


@dataclass(frozen=True, slots=True)
class Check:
    """One row of a diagnosis: what was looked at, found and expected. Only "error" fails the whole."""

    name: str
    found: str
    expected: str
    level: Level

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write."""
        return {**asdict(self), "ok": self.level != "error"}


def failed(checks: Iterable[Check]) -> bool:
    """Whether any check is an error."""
    return any(check.level == "error" for check in checks)


def _must(name: str, found: str, expected: str, fine: bool) -> Check:
    return Check(name, found, expected, "ok" if fine else "error")


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def check_reference(
    reference: Mapping[str, Turns],
    rng: np.random.Generator,
    *,
    uem: Mapping[str, NDArray[np.float64]] | None = None,
    num_crops: int = 1000,
    grids: Mapping[str, FrameGrid] | None = None,
) -> list[Check]:
    """Every check on a reference.

    Parameters
    ----------
    rng : draws the crops.
    uem : what is scored; without it, from each recording's first turn to its last.
    grids : by name, frames to look for the floor of beside `GRIDS`; those that are among these are left out.

    Raises
    ------
    ValueError : no reference speech.
    """
    itself = score(reference, reference, uem=uem).corpus
    if not itself.total_s > 0:
        raise ValueError("this reference holds no speech to check a scorer with")
    return [
        *_identity(reference, uem, itself),
        *_arrival(reference, uem, rng, num_crops),
        *_floors(reference, uem, GRIDS | {n: g for n, g in (grids or {}).items() if g not in GRIDS.values()}),
        *_collars(reference, uem),
        *_ami_totals(reference),
    ]


def _identity(
    reference: Mapping[str, Turns], uem: Mapping[str, NDArray[np.float64]] | None, itself: DiarizationErrors
) -> list[Check]:
    rotated = {name: [*turns.speakers[1:], *turns.speakers[:1]] for name, turns in reference.items()}
    order = {name: turns.speakers for name, turns in reference.items()}
    result = score(reference, reference, uem=uem, reference_order=order, hypothesis_order=rotated)
    permuted = result.corpus
    # One speaker alone has one channel, however it is rotated.
    several = [errors for errors in result.recordings.values() if errors.num_speakers > 1]
    exact = itself.der < 1e-9 and itself.jer < 1e-9
    checks = [
        _must("reference against itself: DER, JER", f"{_percent(itself.der)}, {_percent(itself.jer)}", "0, 0", exact),
        _must("channels rotated by one: DER, mapped", _percent(permuted.der), "0", permuted.der < 1e-9),
    ]
    if several:
        fixed = sum(several, DiarizationErrors()).fixed_der
        checks.append(_must("channels rotated by one: DER, fixed", _percent(fixed), "near 100 %", fixed > 0.1))
    return checks


def _arrival(
    reference: Mapping[str, Turns],
    uem: Mapping[str, NDArray[np.float64]] | None,
    rng: np.random.Generator,
    num_crops: int,
) -> list[Check]:
    """Channels by arrival in the crop (what a model can know) against arrival in the session (flawed labels)."""
    spans = {
        name: (uem[name].min(), uem[name].max()) if uem and name in uem and len(uem[name]) else (0.0, turns.end_s.max())
        for name, turns in reference.items()
        if len(turns)
    }
    spans = {name: span for name, span in spans.items() if span[1] - span[0] > CROP_S}
    title = f"{num_crops} random {CROP_S:g} s crops"
    if not spans:
        return [Check(title, f"no recording is longer than {CROP_S:g} s", "", "info")]
    room = np.array([end - start - CROP_S for start, end in spans.values()])
    names = list(spans)
    differ = used = 0
    total = DiarizationErrors()
    each = []
    for pick in rng.choice(len(names), size=num_crops, p=room / room.sum()):
        turns = reference[names[pick]]
        start = spans[names[pick]][0] + rng.uniform(0, room[pick])
        crop = turns.cropped(start, start + CROP_S)
        if not len(crop):
            continue
        errors, _ = score_recording(crop, crop, reference_order=turns.speakers)
        used += 1
        differ += crop.speakers != turns.speakers[: len(crop.speakers)]
        total += errors
        each.append(errors.fixed_der)
    if not used:
        return [Check(title, "none holds speech", "", "info")]
    return [
        Check(f"{title}: arrival order is not the session's", _percent(differ / used), "87.8 % on AMI train", "info"),
        _must("a perfect diarizer of these crops: DER, mapped", _percent(total.der), "0", total.der < 1e-9),
        Check(
            "the same in session channels: DER, fixed (summed; mean of crops)",
            f"{_percent(total.fixed_der)}; {_percent(float(np.mean(each)))}",
            "71.3 % on AMI train",
            "info",
        ),
    ]


def _floors(
    reference: Mapping[str, Turns], uem: Mapping[str, NDArray[np.float64]] | None, grids: Mapping[str, FrameGrid]
) -> list[Check]:
    checks = []
    for title, grid in grids.items():
        centre, outward = (floor(reference, grid, uem=uem, outward=flag).der for flag in (False, True))
        found = f"{_percent(centre)}; {_percent(outward)}"
        # Rounding each boundary outward moves it half a frame on average, the nearest one a quarter.
        name = f"floor at {title}: by frame centre; rounded outward"
        checks.append(Check(name, found, "the second is higher", "ok" if centre <= outward + 1e-9 else "warning"))
        hidden = floor(reference, grid, uem=uem, outward=True, collar_s=0.25).wrong_s
        checks.append(_must(f"floor at {title} under a collar of ±0.25 s", f"{hidden:.2f} s", "0", hidden < 1e-6))
    return checks


def _collars(reference: Mapping[str, Turns], uem: Mapping[str, NDArray[np.float64]] | None) -> list[Check]:
    whole_s = score(reference, reference, uem=uem).corpus.total_s
    checks = []
    for collar_s, title in sorted(COLLARS.items()):
        for skip_overlap in (False, True):
            errors = score(reference, reference, uem=uem, collar_s=collar_s, skip_overlap=skip_overlap).corpus
            wrong = errors.wrong_s
            fine = wrong < 1e-6 and errors.total_s <= whole_s + 1e-6
            found = f"{wrong:.2f} s; {errors.total_s:.2f} s ({_percent(errors.total_s / whole_s)})"
            name = f"collar ±{collar_s:g} s ({title})" + (", overlap left out" if skip_overlap else "")
            checks.append(_must(f"{name}: errors; speaker time left", found, "0; less than without", fine))
    return checks


def _ami_totals(reference: Mapping[str, Turns]) -> list[Check]:
    seconds = {}
    for name, turns in reference.items():
        if _AMI.fullmatch(meeting := name.split(".")[0]):  # "ES2004a.Mix-Headset" is ES2004a
            merged = turns.merged()
            seconds[meeting] = float((merged.end_s - merged.start_s).sum())
    checks = []
    for split, (count, expected_s) in _AMI_TOTALS.items():
        if split == "train":
            mine = [s for m, s in seconds.items() if m not in _AMI_TEST and m not in _AMI_DEV]
        else:
            mine = [s for m, s in seconds.items() if m in (_AMI_TEST if split == "test" else _AMI_DEV)]
        if not mine:
            continue
        found = f"{sum(mine):.2f} s in {len(mine)} of {count} meetings"
        if len(mine) != count:
            checks.append(Check(f"AMI {split}, speaker time", found, "known for the whole list only", "info"))
            continue
        fine = abs(sum(mine) - expected_s) <= _AMI_TOLERANCE_S
        checks.append(_must(f"AMI {split}, speaker time (only_words)", found, f"{expected_s:.2f} s", fine))
    return checks
