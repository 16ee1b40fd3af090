"""Every system on the mixtures of a split: what each makes of a mixture, told how many voices there are and left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.unmixing import Enrolment, Vectors, assigned, clusters, counting, identify
from featstore import Store
from trainers.unmix.data import Mixture, towards
from trainers.unmix.loop import predict, surest
from trainers.unmix.network import Unmixer
from trainers.unmix.rivals import Grouping, constant_set, means_of, unit

#: Systems, in the order of a table; "unmix" is what was fitted, "tracks" the teacher on each voice alone.
SYSTEMS = ("unmix", "windows", "parts", "mean", "constant", "tracks")
EXISTENCE = tuple(np.round(np.arange(0.1, 0.95, 0.05), 2).tolist())


@dataclass(frozen=True)
class Sets:
    """What a system makes of each mixture: with the true number of voices, and with its own; None where it does not count."""

    told: list[Vectors]
    own: list[Vectors] | None

    def of(self, counts: Sequence[int], known: set[int]) -> Sets:
        """Those of mixtures of so many voices."""
        keep = [k for k, count in enumerate(counts) if count in known]
        return Sets([self.told[k] for k in keep], None if self.own is None else [self.own[k] for k in keep])


@dataclass(frozen=True, eq=False)
class Heard:
    """A split's mixtures with what the systems need: the network's sets, the teacher's windows from the centre."""

    mixtures: list[Mixture]
    sets: list[Vectors]
    existence: list[NDArray[np.float32]]
    windows: list[Vectors] | None

    @classmethod
    def of(cls, mixtures: list[Mixture], network: Unmixer, store: Store, feature: str, device: torch.device) -> Heard:
        """Windows are the frames of `feature`, where all mixtures have them."""
        sets, existence = predict(network, [m.frames for m in mixtures], device)
        rows = store.index(feature).rows
        held = all(m.id in rows for m in mixtures)
        centre = network.windows_centre.cpu().numpy()
        windows = [towards(store.frames(feature, m.id), centre) for m in mixtures] if held else None
        return cls(mixtures, sets, existence, windows)

    @property
    def counts(self) -> list[int]:
        return [len(m.voices) for m in self.mixtures]

    @property
    def parts(self) -> list[Vectors] | None:
        """What a separation made of each; None where some were not separated."""
        made = [m.parts for m in self.mixtures if m.parts is not None]
        return made if len(made) == len(self.mixtures) else None


def existing(sets: Vectors, existence: NDArray[np.float32], threshold: float) -> Vectors:
    """The slots that hold a voice, the surest first; one at least."""
    return surest(sets, existence, max(1, int((existence >= threshold).sum())))


def existence_for(heard: Heard) -> float:
    """The threshold with which most mixtures are counted right."""
    right = [
        sum(max(1, int((x >= t).sum())) == n for x, n in zip(heard.existence, heard.counts, strict=True))
        for t in EXISTENCE
    ]
    return float(EXISTENCE[int(np.argmax(right))])


def systems(
    heard: Heard,
    train: Sequence[Mixture],
    threshold: float,
    grouping: Grouping | None,
    slots: int,
    seed: int,
    joining: Grouping | None = None,
) -> dict[str, Sets]:
    """Of all systems that the store has features for, by name; `grouping` is for windows, `joining` for separated parts."""
    pairs = list(zip(heard.sets, heard.existence, strict=True))
    made = {
        "unmix": Sets(
            [surest(s, x, n) for (s, x), n in zip(pairs, heard.counts, strict=True)],
            [existing(s, x, threshold) for s, x in pairs],
        )
    }
    for name, pieces, how in (("windows", heard.windows, grouping), ("parts", heard.parts, joining)):
        if pieces is not None and how is not None:
            made[name] = Sets(
                [means_of(p, n, seed) for p, n in zip(pieces, heard.counts, strict=True)],
                [how(p, slots) for p in pieces],
            )
    if heard.windows is not None and grouping is not None:
        copies = [np.repeat(unit(w.mean(0))[None], n, 0) for w, n in zip(heard.windows, heard.counts, strict=True)]
        made["mean"] = Sets(copies, [c[:1] for c in copies])
    constant = constant_set([m.voices for m in train], max(slots, *heard.counts), seed)
    made["constant"] = Sets([constant[:n] for n in heard.counts], None)
    made["tracks"] = Sets([m.voices for m in heard.mixtures], None)
    return {name: made[name] for name in SYSTEMS if name in made}


def figures(mixtures: Sequence[Mixture], made: dict[str, Sets], seed: int) -> dict[str, dict[str, Any]]:
    """By system: assignment cosine, names found (by speaker; see `identify`), mixtures counted right, and clusters."""
    speakers, said = [m.speakers for m in mixtures], [m.utterances for m in mixtures]
    enrolment = Enrolment([m.voices for m in mixtures], speakers, said)
    told: dict[str, dict[str, Any]] = {}
    for name, sets in made.items():
        cosines = np.concatenate([assigned(s, m.voices)[2] for s, m in zip(sets.told, mixtures, strict=True)])
        told[name] = {
            "cosine": float(cosines.mean()),
            "identified": identify(sets.told, speakers, said, enrolment),
            "own": None if sets.own is None else identify(sets.own, speakers, said, enrolment),
            "counting": None if sets.own is None else counting([len(s) for s in sets.own], speakers),
            "clusters": clusters(sets.told, [m.voices for m in mixtures], speakers, seed),
        }
    return told


def total(by_speaker: dict[str, dict[str, float]], over: str, under: str) -> float:
    """A rate over all speakers: sums first, then one division."""
    whole = sum(sums[under] for sums in by_speaker.values())
    return sum(sums[over] for sums in by_speaker.values()) / whole if whole else 0.0


def by_cardinality(
    mixtures: Sequence[Mixture], made: dict[str, Sets], trained: Callable[[int], bool]
) -> list[dict[str, Any]]:
    """Of mixtures of so many voices: how many, whether such were trained on, and each system's names, cosine, count."""
    enrolment = Enrolment(
        [m.voices for m in mixtures], [m.speakers for m in mixtures], [m.utterances for m in mixtures]
    )
    rows = []
    for count in sorted({len(m.voices) for m in mixtures}):
        chosen = [k for k, m in enumerate(mixtures) if len(m.voices) == count]
        part = [mixtures[k] for k in chosen]
        speakers, said = [m.speakers for m in part], [m.utterances for m in part]
        row: dict[str, Any] = {"voices": count, "mixtures": len(part), "trained": trained(count), "systems": {}}
        for name, sets in made.items():
            own = [sets.told[k] for k in chosen]
            cosines = np.concatenate([assigned(s, m.voices)[2] for s, m in zip(own, part, strict=True)])
            row["systems"][name] = {
                "identified": total(identify(own, speakers, said, enrolment), "hits", "voices"),
                "cosine": float(cosines.mean()),
                "counted": None if sets.own is None else float(np.mean([len(sets.own[k]) == count for k in chosen])),
            }
        rows.append(row)
    return rows
