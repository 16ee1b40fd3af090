"""One simulated session: who speaks when, and the pieces of speech that are placed there.

The conversation model is that of NeMo's ``MultiSpeakerSimulator``: one sentence after another, and before each a
silence or an overlap, drawn so that the session's running ratios move to what was asked. It needs no word alignments:
turns follow an energy detector. ``docs/decisions/0003-simulation-engine.md`` says why NeMo is not called itself.

Source: Park et al., “Property-Aware Multi-Speaker Data Simulation”, arXiv 2310.12371.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.corpora import audio
from featstore.simulation.mix import Placed, mix
from featstore.simulation.recipe import Recipe
from featstore.simulation.speech import PAD_S, Piece, crop, cut, speech_and_overlap_s
from featstore.types import Turn, Utterance

_BACK_BY = 0.85  # of the session: who was away has time left to speak again
_CROPS = 4  # places of an utterance that are looked at for a mixture; the one with most speech is taken


class _Source:
    """One speaker's pieces, utterances in random order, all of them before any comes again."""

    def __init__(
        self,
        speaker: str,
        utterances: list[Utterance],
        recipe: Recipe,
        rng: np.random.Generator,
        failures: list[dict[str, str]],
        speed: float,
    ) -> None:
        self.speaker, self.utterances, self.recipe, self.failures = speaker, list(utterances), recipe, failures
        # Read at another rate than it is played at: faster is shorter and higher, as by somebody smaller.
        self.rate_hz = round(recipe.sample_rate_hz / speed)
        self.rng = np.random.default_rng(rng.integers(2**63))  # of its own: how often it is asked changes nothing else
        self.order: deque[Utterance] = deque()
        self.pieces: deque[Piece] = deque()
        self.utterance = ""  # that the last piece is of

    def next(self) -> Piece:
        """Raises ValueError where no utterance of the speaker can be used."""
        while not self.pieces:
            if not self.utterances:
                raise ValueError(f"speaker {self.speaker!r} has no utterance that can be used")
            if not self.order:
                self.order.extend(self.utterances[k] for k in self.rng.permutation(len(self.utterances)))
            utterance = self.order.popleft()
            self.utterance = utterance.id
            try:
                self.pieces.extend(cut(audio.load(utterance, self.rate_hz), self.recipe))
            except (ValueError, OSError, RuntimeError) as error:  # soundfile raises RuntimeErrors
                self.utterances.remove(utterance)
                self.failures.append({"id": utterance.id, "error": " ".join(str(error).split())})
        return self.pieces.popleft()


def make_session(
    speakers: dict[str, list[Utterance]],
    recipe: Recipe,
    rng: np.random.Generator,
    failures: list[dict[str, str]],
    tracks: dict[str, NDArray[np.float32]] | None = None,
    told: Callable[[float], None] = lambda share: None,
) -> tuple[NDArray[np.float32], list[Turn], dict[str, Any]]:
    """Draw, place and mix one session.

    Parameters
    ----------
    speakers : speaker → utterances; at least as many as the recipe's sessions have.
    failures : utterances that could not be used are appended, as ``{"id": …, "error": …}``.
    tracks : filled with each voice's own, by speaker (see `mix`).
    told : called now and then with the share of the session that is made.

    Returns
    -------
    samples at the recipe's rate, shape ``(samples,)``; the turns by time; what was drawn and measured (see `mix`), and of a
    mixture ``voices``: speaker and utterance of each.

    Raises
    ------
    ValueError : a speaker has no utterance that can be used; no such room or noise.
    """
    if recipe.max_turn_s[0] < recipe.max_turn_s[1]:
        longest_s = float(rng.spawn(1)[0].uniform(*recipe.max_turn_s))
        recipe = replace(recipe, max_turn_s=(longest_s, longest_s))
    count = int(rng.integers(int(recipe.speakers[0]), int(recipe.speakers[1]) + 1))
    names = [sorted(speakers)[k] for k in rng.choice(len(speakers), count, replace=False)]
    speeds = rng.spawn(1)[0].choice(recipe.speeds, count).tolist() if recipe.speeds != (1.0,) else [1.0] * count
    heard = {
        f"{name}x{speed:g}" if speed != 1 else name: (name, speed) for name, speed in zip(names, speeds, strict=True)
    }
    sources = {
        called: _Source(called, speakers[name], recipe, rng, failures, speed) for called, (name, speed) in heard.items()
    }
    if recipe.layout == "pair":
        placed, length_s = _pair(sources, recipe, rng)
    else:
        assert recipe.duration_s is not None  # no recipe of a conversation or mixture is without
        length_s = float(rng.uniform(*recipe.duration_s))
        if recipe.layout == "mix":
            placed = _mixture(sources, recipe, rng, length_s)
        else:
            placed = _conversation(sources, recipe, rng, length_s, lambda share: told(share / 2))
    others = [u for name, found in speakers.items() if name not in names for u in found]
    samples = round(length_s * recipe.sample_rate_hz)
    wave, turns, facts = mix(
        placed, recipe, rng, samples, others, failures, tracks, lambda share: told((1 + share) / 2)
    )
    if recipe.layout == "mix":
        facts["voices"] = [{"speaker": name, "utterance": source.utterance} for name, source in sources.items()]
    return wave, turns, facts


def _pair(sources: dict[str, _Source], recipe: Recipe, rng: np.random.Generator) -> tuple[list[Placed], float]:
    (a, first), (b, second) = ((name, source.next()) for name, source in sources.items())
    shared_s = float(rng.uniform(*recipe.overlap)) * min(first.length_s, second.length_s)
    start_s = PAD_S
    second_start_s = start_s + first.length_s - shared_s
    return [(start_s, a, first), (second_start_s, b, second)], second_start_s + second.length_s + PAD_S


def _mixture(sources: dict[str, _Source], recipe: Recipe, rng: np.random.Generator, length_s: float) -> list[Placed]:
    """A cut of each voice, all as long; the first begins and the last ends the mixture, the others lie between.

    Cuts of ``length / (2 - overlap)`` make the first and the last share `overlap` of theirs, and any other two more. A shorter
    utterance is heard whole, and shares as much of itself.
    """
    own_s = length_s / (2 - float(rng.uniform(*recipe.overlap))) if len(sources) > 1 else length_s
    starts_s = (length_s - own_s) * np.array([0.0, *rng.uniform(0, 1, max(len(sources) - 2, 0)), 1.0])
    placed = []
    for start_s, (name, source) in zip(starts_s.tolist(), sources.items(), strict=False):
        whole = source.next()
        # The first of all places has speech in any case.
        firsts_s = [*rng.uniform(0, max(whole.length_s - own_s, 0), _CROPS).tolist(), 0.0]
        pieces = [crop(whole, first_s, own_s, recipe.sample_rate_hz) for first_s in firsts_s]
        placed.append((start_s, name, max(pieces, key=lambda piece: piece.speech_s)))
    return placed


def _conversation(
    sources: dict[str, _Source],
    recipe: Recipe,
    rng: np.random.Generator,
    length_s: float,
    told: Callable[[float], None] = lambda share: None,
) -> list[Placed]:
    """Sentence after sentence until `length_s` is full; the last may stick out and is cut when mixed."""
    overlap, silence = (float(rng.uniform(*asked)) for asked in (recipe.overlap, recipe.silence))
    names = list(sources)
    shares = np.clip(rng.normal(1 / len(names), recipe.dominance_sd, len(names)), 0.05, None)
    leaving = _absences(names, recipe, rng.spawn(1)[0], length_s)
    back_s: dict[str, float] = {}  # when those who left are there again
    ends_s = dict.fromkeys(names, 0.0)  # where each speaker's last sentence ends
    placed: list[Placed] = []
    turns: list[Turn] = []
    previous = None
    while (now_s := max(ends_s.values())) < length_s:
        told(now_s / length_s)
        name = _next_speaker(names, shares, previous, recipe, rng, ends_s, back_s, now_s, len(placed), length_s)
        piece = sources[name].next()
        speech_s, overlap_s = speech_and_overlap_s(turns)
        # What is missing once this sentence is there: (overlap + x) / (speech + new - x) = asked, and
        # (silence + x) / (session + new + x) = asked, both solved for x.
        missing_overlap_s = (overlap * (speech_s + piece.speech_s) - overlap_s) / (1 + overlap)
        missing_silence_s = (silence * (now_s + piece.length_s) - (now_s - speech_s)) / (1 - silence)
        if previous not in (None, name) and missing_overlap_s > 0 and missing_overlap_s >= missing_silence_s:
            # Never more than `voices` at once, never over the speaker's own last words.
            others_s = sorted(ends_s.values(), reverse=True)[recipe.voices - 1 : recipe.voices]
            earliest_s = max(ends_s[name], back_s.get(name, 0.0), *others_s)
            start_s = max(now_s - rng.gamma(4, missing_overlap_s / 4), earliest_s)
        else:
            start_s = now_s + (rng.gamma(4, missing_silence_s / 4) if missing_silence_s > 0 else 0.0)
        placed.append((start_s, name, piece))
        turns += [Turn(start_s + a, start_s + b, name) for a, b in piece.segments.tolist()]
        ends_s[name] = start_s + piece.length_s
        previous = name
        leaves_s, away_s = leaving.get(name, (length_s, 0.0))
        if name not in back_s and leaves_s <= ends_s[name] <= _BACK_BY * length_s - away_s:
            back_s[name] = ends_s[name] + away_s
    return placed


def _absences(
    names: list[str], recipe: Recipe, rng: np.random.Generator, length_s: float
) -> dict[str, tuple[float, float]]:
    """Who leaves: from when on, after their next sentence, and for how long; half of the speakers, never all."""
    if recipe.absence_s is None:
        return {}
    leaving = {}
    for k in rng.permutation(len(names))[: len(names) // 2]:
        away_s = float(rng.uniform(*recipe.absence_s))
        leaving[names[k]] = float(rng.uniform(0.1, 0.8 * _BACK_BY) * (length_s - away_s)), away_s
    return leaving


def _next_speaker(
    names: list[str],
    shares: NDArray[np.float64],
    previous: str | None,
    recipe: Recipe,
    rng: np.random.Generator,
    ends_s: dict[str, float],
    back_s: dict[str, float],
    now_s: float,
    sentences: int,
    length_s: float,
) -> str:
    stays, chance = rng.random(2)
    here = np.array([back_s.get(name, 0.0) <= now_s for name in names])
    # Everybody shall speak, and again who was away: when time runs short for those who have not, it is their turn.
    unheard = here & np.array([ends_s[name] <= back_s.get(name, 0.0) for name in names])
    others = here & np.array([name != previous for name in names])
    if unheard.any() and sentences and length_s - now_s < 3 * unheard.sum() * now_s / sentences:
        open_to = unheard
    elif (
        previous is not None and back_s.get(previous, 0.0) <= now_s and (stays >= recipe.turn_prob or not others.any())
    ):
        return previous
    else:
        open_to = others
    weights = np.where(open_to, shares, 0)
    return names[int(np.searchsorted(np.cumsum(weights) / weights.sum(), chance, side="right"))]
