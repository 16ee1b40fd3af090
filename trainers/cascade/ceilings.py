"""Which half fails: the cascade with the truth in the place of one of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evaluation.diarization import DiarizationErrors
from featstore import Store
from trainers.cascade.cascade import Cascade, as_counts
from trainers.cascade.inputs import counts, read
from trainers.cascade.measuring import Truth, summed

# What is known when the voices are right by decree: nothing of channels, nor of single speakers (JER).
_KNOWN = "der missed_detection false_alarm confusion total_s missed_s false_alarm_s confusion_s scored_s".split()


def ceilings(cascade: Cascade, store: Store, truth: Truth, errors: Mapping[str, DiarizationErrors]) -> dict[str, Any]:
    """Figures over all and by recording of both ceilings.

    *True when, own who*: the reference's number of speakers takes the head's place, in finding the voices and in
    decoding. *Own when, true who*: as many speak at any time as in the cascade's answer, and always the right ones; so
    its missed speech and false alarms are what remains.

    Parameters
    ----------
    errors : of the cascade itself, by recording.
    """
    config, classes = cascade.config, cascade.head.classes
    heard = [
        cascade.heard(
            as_counts(counts(session, cascade.grid, config.substeps), classes),
            read(store, config.who_features, session.id, 0, session.num_frames),
        )
        for session in truth.sessions
    ]
    true_when = truth.score(cascade.diarize(heard))
    true_who = {name: replace(e, confusion_s=0.0) for name, e in errors.items()}
    return {"true_when_own_who": _figures(true_when), "own_when_true_who": _figures(true_who)}


def _figures(recordings: Mapping[str, DiarizationErrors]) -> dict[str, Any]:
    def told(errors: DiarizationErrors) -> dict[str, Any]:
        every = errors.to_json()
        return {name: every[name] for name in _KNOWN}

    return {"test": told(summed(recordings)), "recordings": {name: told(e) for name, e in recordings.items()}}
