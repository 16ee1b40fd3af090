"""Fit the probe: a linear layer on pooled features, scored on a trial list, with two second opinions beside it."""

from __future__ import annotations

import hashlib
import shutil
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import featstore
from evaluation.runs import MODEL, OUTPUTS, RESULT, SCORES, score_table
from evaluation.trials import Trials
from evaluation.verification import cosine_scores, evaluate_scores
from featstore import FeatureSpec, FrameGrid, Store
from featstore.extractors.device import pick_device
from trainers.checkpoint import nothing_to_do
from trainers.config import ConfigError, ProbeConfig
from trainers.fraction import share_of
from trainers.linear_probe import LinearProbe
from trainers.progress import Progress, Unseen
from trainers.runs import Run, output_spec
from trainers.trial_list import listed, training_ids

#: Length of the pieces that stand in for a second utterance where no speaker has one.
STAND_IN_PIECE_S = 3.0
_LOGREG_ITERATIONS = 200


@dataclass(frozen=True)
class ProbeData:
    """What the probe sees: vectors to train on, vectors to score.

    Attributes
    ----------
    vectors, speakers : training vectors (n, dim) float32 and their speaker's name (n,).
    whole : (n,) bool, True for whole utterances, False for pieces of them.
    piece_s : the length of those pieces; 0 where there are none.
    trials, ids : the trial list, and the store's id for each of its names.
    trial_vectors : (names, dim) float32.
    trial_speakers : speaker of each name, or None where the store does not know.
    """

    vectors: NDArray[np.float32]
    speakers: NDArray[Any]
    whole: NDArray[np.bool_]
    piece_s: float
    trials: Trials
    ids: list[str]
    trial_vectors: NDArray[np.float32]
    trial_speakers: list[str | None]


def load_data(run: Run[ProbeConfig], store: Store) -> ProbeData:
    """Read the trial list and the vectors, by the run's protocol.

    Raises
    ------
    ConfigError : no trial list; in the sound protocol, a speaker on both sides; fewer than two speakers to train on.
    """
    config = run.config
    trials, ids, trial_speakers = listed(config.trials, store)
    if config.protocol == "reference":
        # As published: the probe learns the very utterances it is then scored on.
        speaker_of = dict(zip(ids, trial_speakers, strict=True))
        known = {id: speaker for id, speaker in speaker_of.items() if speaker is not None}
        train, speakers = list(known), list(known.values())
    else:
        train, speakers = training_ids(config.trials, store, ids, trial_speakers)
    kept = share_of(list(zip(train, speakers, strict=True)), config.train_fraction, config.seed)
    train, speakers = [id for id, _ in kept], [speaker for _, speaker in kept]
    distinct = len(set(speakers))
    if distinct < 2:
        raise ConfigError(
            f"{store.address}: the probe needs 2 or more speakers to train on, found {distinct} "
            f"in {len(train)} utterances with a speaker"
            + (f" and split=train. {_splits(store)}" if config.protocol == "sound" else " in the trial list")
        )
    piece_s = config.piece_s or (STAND_IN_PIECE_S if distinct == len(train) else 0.0)
    vectors = _pooled(store, config.features, train)
    owners = np.arange(len(train))
    if piece_s:
        pieces, owner = _pieces(store, config.features, train, piece_s)
        vectors, owners = np.concatenate([vectors, pieces]), np.concatenate([owners, owner])
    return ProbeData(
        vectors=vectors,
        speakers=np.asarray(speakers)[owners],
        whole=np.arange(len(vectors)) < len(train),
        piece_s=piece_s,
        trials=trials,
        ids=ids,
        trial_vectors=_pooled(store, config.features, ids),
        trial_speakers=trial_speakers,
    )


def _pooled(store: Store, features: tuple[str, ...], ids: list[str]) -> NDArray[np.float32]:
    return np.concatenate([store.pooled(name, ids) for name in features], axis=1)


def _pieces(
    store: Store, features: tuple[str, ...], ids: list[str], piece_s: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Means over consecutive pieces of each utterance (pieces, dim), and whose they are; a short rest is left out."""
    step_s = store.features[features[0]].grid.step_s
    size = max(1, round(piece_s / step_s))
    vectors, owners = [], []
    for owner, id in enumerate(ids):
        count = min(store.num_frames(name, id) for name in features) // size
        if count < 2:  # one piece would be the utterance again
            continue
        parts = [store.frames(name, id, 0, count * size).astype(np.float32) for name in features]
        whole = np.concatenate(parts, axis=1)
        vectors.append(whole.reshape(count, size, -1).mean(1))
        owners.append(np.full(count, owner))
    dim = sum(store.features[name].dim for name in features)
    if not vectors:
        return np.zeros((0, dim), np.float32), np.zeros(0, np.int64)
    return np.concatenate(vectors), np.concatenate(owners)


def second_opinions(data: ProbeData) -> tuple[dict[str, NDArray], list[str]]:
    """Trial embeddings of LDA and of logistic regression, trained on the same vectors, standardised.

    Returns
    -------
    dict : "lda", "logreg" → (names, dim of its space); a method that cannot be fitted is left out.
    list : what went wrong or did not converge, one line each.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(data.vectors)
    train, test = scaler.transform(data.vectors), scaler.transform(data.trial_vectors)
    spaces: dict[str, NDArray] = {}
    notes = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Only one sample available")  # shrinkage copes with it
        if len(train) > len(np.unique(data.speakers)):
            # More dimensions than examples a speaker: an unshrunk within-speaker covariance is singular.
            lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
            try:
                spaces["lda"] = lda.fit(train, data.speakers).transform(test)
            except (ValueError, np.linalg.LinAlgError) as error:
                notes.append(f"lda: not fitted: {error}")
        else:
            notes.append("lda: not fitted: every speaker has one vector only")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        logreg = LogisticRegression(max_iter=_LOGREG_ITERATIONS).fit(train, data.speakers)
    if logreg.n_iter_.max() >= _LOGREG_ITERATIONS:
        notes.append(f"logreg: not converged after {_LOGREG_ITERATIONS} iterations")
    spaces["logreg"] = test @ logreg.coef_.T
    return spaces, notes


def fit_probe(run: Run[ProbeConfig], store: Store, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train, score, and fill the run's folder.

    Returns
    -------
    What it wrote to result.json; of a run that had finished, what stands there, and a note that says so.

    Raises
    ------
    ConfigError : see `load_data`.
    """
    config = run.config
    finished = run.path / RESULT
    if finished.exists():
        before = Run.open(run.path).config
        if isinstance(before, ProbeConfig) and before.epochs == config.epochs:
            return nothing_to_do(run.read_json(finished.name))
    began = time.perf_counter()
    data = load_data(run, store)
    device = str(pick_device(config.device))
    finished.unlink(missing_ok=True)  # it is of other epochs
    run.begin()
    probe = LinearProbe(config.lr, config.epochs, config.batch_size, device, config.seed)
    shown = progress if progress is not None else Unseen()
    probe.fit(
        data.vectors,
        data.speakers,
        on_epoch=lambda row: shown.update(row["epoch"], config.epochs, f"accuracy {row['accuracy']:.1%}"),
    )
    return _finish(run, store, data, probe, began, time.perf_counter() - began)


def _finish(
    run: Run[ProbeConfig], store: Store, data: ProbeData, probe: LinearProbe, began: float, fit_seconds: float
) -> dict[str, Any]:
    """Score the trials in every space and write all files; result.json, the last, says that the run has finished."""
    config = run.config
    mean = data.vectors[data.whole].mean(0, dtype=np.float64).astype(np.float32)
    others, notes = second_opinions(data)
    spaces = {
        "raw": data.trial_vectors,
        "raw_centred": data.trial_vectors - mean,
        "probe": probe.transform(data.trial_vectors),
        **others,
    }
    trials = data.trials
    scores = {name: cosine_scores(space, trials.left, trials.right) for name, space in spaces.items()}
    run.write_table(SCORES, score_table(trials, data.ids, data.trial_speakers, scores))
    facts = {"kind": "probe", "classes": [str(c) for c in probe.classes_]}
    tensors = {"weight": probe.coef_, "bias": probe.intercept_, "train_mean": mean}
    run.write_tensors(MODEL, {k: _tensor(v) for k, v in tensors.items()}, facts)
    run.write_history(probe.history_)
    _write_embeddings(run, store, data, spaces["probe"], probe)

    result = {
        "kind": "probe",
        "protocol": config.protocol,
        "features": list(config.features),
        "warnings": run.warnings,
        "notes": notes,
        "num_utterances": int(data.whole.sum()),
        "num_pieces": int((~data.whole).sum()),
        "piece_s": data.piece_s,
        "num_speakers": len(probe.classes_),
        "num_trials": len(trials),
        "num_trial_utterances": len(trials.names),
        "num_trial_speakers": len({s for s in data.trial_speakers if s is not None}),
        "train_accuracy": float(probe.score(data.vectors[data.whole], data.speakers[data.whole])),
        "parameters": int(probe.coef_.size + probe.intercept_.size),
        "device": probe.device,
        "fit_seconds": round(fit_seconds, 3),
        "seconds": round(time.perf_counter() - began, 3),
        "systems": {name: evaluate_scores(s, trials.same).to_json() for name, s in scores.items()},
    }
    run.write_json(RESULT, result)
    return result


def _tensor(array: NDArray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def _write_embeddings(
    run: Run[ProbeConfig], store: Store, data: ProbeData, vectors: NDArray, probe: LinearProbe
) -> None:
    """The trial utterances in the probe's space, as a store: `evaluation eer --store RUN/outputs --feature probe`."""
    weights = hashlib.sha256(np.ascontiguousarray(probe.coef_).tobytes()).hexdigest()
    settings = {"pooled": "mean", "protocol": run.config.protocol}
    spec = FeatureSpec(
        **output_spec("probe", vectors.shape[1], run.features.values(), model="linear probe", **settings),
        dtype="float32",  # so that the scores can be taken again from here, exactly
        grid=FrameGrid(0.0, 1.0),  # one vector an utterance: its place in time means nothing
        weights_sha256=weights,
    )
    shutil.rmtree(run.path / OUTPUTS, ignore_errors=True)  # of this run when it was cut off
    with featstore.writer(run.path / OUTPUTS, spec) as writer:
        rows = dict(zip(data.ids, vectors, strict=True))
        for utterance in writer.missing([store.utterance(id) for id in rows]):
            writer.add(utterance, rows[utterance.id][None])


def _splits(store: Store) -> str:
    """What there is in place of split=train, and what to do about it."""
    there = Counter(name or "(no split)" for name in store.utterances["split"].to_pylist())
    told = ", ".join(f"{name} {count}" for name, count in sorted(there.items()))
    return (
        f"Splits found: {told}. Give utterances their split: featstore relabel STORE MANIFEST, with utt_id and split on "
        "each line"
    )
