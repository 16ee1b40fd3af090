"""Fit a proxy: train it, choose on dev, score the trials in every form its input may have, and let judges hear it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.runs import MODEL, RESULT, SCORES, score_table
from evaluation.verification import cosine_scores, evaluate_scores
from featstore import Store
from featstore.extractors.device import pick_device
from trainers.checkpoint import nothing_to_do
from trainers.linear_probe import LinearProbe
from trainers.progress import Progress, Unseen
from trainers.proxy.ascent import ascent, linear_judge, proxy_judge, vectors_of
from trainers.proxy.config import ProxyConfig
from trainers.proxy.data import ProxyData, Voices, load_data
from trainers.proxy.forms import corrupted, logits_of
from trainers.proxy.loop import SOFT_SHARE, State, Training, best_loss, candidate, embed, judge_names
from trainers.proxy.network import Proxy
from trainers.runs import Run

#: How many codes are wrong where such are scored.
WRONG = (0.1, 0.3)
#: What the right codes have of the probability where there is more doubt than that, and a temperature that takes it away.
DOUBTFUL, SHARPER = 0.2, 0.5


def fit_proxy(
    run: Run[ProxyConfig],
    store: Store,
    *,
    progress: Progress | None = None,
    on_step: Callable[[State], None] | None = None,
) -> dict[str, Any]:
    """Train with each loss (or go on), keep the best on dev, measure it on the trials, and fill the run's folder.

    Returns
    -------
    What it wrote to result.json; of a run that had finished, what stands there, and a note that says so.

    Raises
    ------
    ConfigError : the store does not fit the configuration; see `load_data`.
    RunError : the loss is no longer a number; a checkpoint is damaged.
    """
    if (run.path / RESULT).exists():
        return nothing_to_do(run.read_json(RESULT))
    config = run.config
    data = load_data(config, store)
    table = store.codebooks(config.feature).table
    frames = max(1, round(config.crop_s / store.features[config.feature].grid.step_s))
    teacher = store.pooled(config.teacher, data.train.ids) if "teacher" in config.losses else None
    device = pick_device(config.device)
    shown = progress if progress is not None else Unseen()
    run.begin()
    training = Training(run, data, torch.from_numpy(table), teacher, frames, device, shown, on_step)
    training.to_the_end()
    return _finish(run, store, data, table, training, frames)


def _finish(
    run: Run[ProxyConfig], store: Store, data: ProxyData, table: NDArray[np.float32], training: Training, frames: int
) -> dict[str, Any]:
    config, state, device = run.config, training.state, training.device
    began = time.perf_counter()
    chosen = best_loss(config, state)
    tensors, facts = run.read_tensors(candidate(chosen))
    known = [str(s) for s in np.unique(np.concatenate([data.train.speakers, data.dev.speakers]))]
    run.write_tensors(MODEL, tensors, {**facts, "classes": known})  # by which an audit sees who was trained on
    proxy = Proxy.load(run.path / MODEL, device)
    spaces = _spaces(proxy, data, table, config.seed, device) | _yardsticks(store, data)
    trials = data.trials
    scores = {name: cosine_scores(space, trials.left, trials.right) for name, space in spaces.items()}
    both = np.concatenate([spaces["proxy"], spaces["proxy_soft"]])
    scores["proxy_mixed"] = cosine_scores(both, trials.left, trials.right + len(spaces["proxy"]))
    run.write_table(SCORES, score_table(trials, data.test.ids, [str(s) for s in data.test.speakers], scores))
    judges = {"linear discriminants": linear_judge(data.train.pieces(frames), table)}
    others = {f"proxy of another start, {k + 1}": name for k, name in enumerate(judge_names(config))}
    others |= {f"proxy trained with {loss}": loss for loss in config.losses if loss != chosen}
    judges |= {
        told: proxy_judge(Proxy.load(run.path / candidate(file), device), device) for told, file in others.items()
    }
    result = {
        "kind": config.kind,
        "protocol": config.protocol,
        "features": list(config.features),
        "warnings": run.warnings,
        "notes": [*data.notes, *_notes(scores)],
        "num_utterances": len(data.train.ids),
        "num_speakers": len(np.unique(data.train.speakers)),
        "num_dev_speakers": len(np.unique(data.dev.speakers)),
        "num_trials": len(trials),
        "num_trial_utterances": len(trials.names),
        "num_trial_speakers": len(np.unique(data.test.speakers)),
        **training.facts(proxy),
        "loss": chosen,
        "dev_eer": {loss: state.best[loss] for loss in config.losses},
        "best_step": facts["step"],
        "input_share": None,
        "systems": {name: evaluate_scores(s, trials.same).to_json() for name, s in scores.items()},
        "published_measure": _published(proxy, data, table, store, config.seed, device),
        "agreement": _agreement(scores),
        "ascent": ascent(proxy, judges, data, frames, config, device),
        "seconds": round(state.seconds + time.perf_counter() - began, 3),
    }
    run.write_json(RESULT, result)
    return result


def _spaces(
    proxy: Proxy, data: ProxyData, table: NDArray[np.float32], seed: int, device: torch.device
) -> dict[str, NDArray[np.float32]]:
    """Trial embeddings by system: what needs no network, and the proxy in every form of its input."""
    bins, codes = table.shape[1], data.test.codes
    raw = _means(data.test, table)
    known = _means(data.train, table)
    probe = LinearProbe(random_state=seed).fit(known, data.train.speakers)

    def drawn(form: Callable[..., torch.Tensor], amount: float) -> Callable[[torch.Tensor], torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return lambda own: form(own, bins, amount, generator)

    spaces = {
        "raw": raw,
        "raw_centred": raw - known.mean(0),
        "probe": probe.transform(raw),
        "proxy": embed(proxy, codes, device),
        "proxy_soft": embed(proxy, codes, device, drawn(logits_of, SOFT_SHARE)),
        "proxy_straight_through": embed(proxy, codes, device, drawn(logits_of, SOFT_SHARE), straight_through=True),
        "proxy_doubtful": embed(proxy, codes, device, drawn(logits_of, DOUBTFUL)),
        "proxy_sharpened": embed(proxy, codes, device, drawn(logits_of, DOUBTFUL), temperature=SHARPER),
    }
    for rate in WRONG:
        spaces[f"proxy_corrupted_{100 * rate:.0f}"] = embed(proxy, codes, device, drawn(corrupted, rate))
    return spaces


def _means(voices: Voices, table: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([vectors_of(own, table).mean(0) for own in voices.codes])


def _yardsticks(store: Store, data: ProxyData) -> dict[str, NDArray[np.float32]]:
    """Means of other features of the same audio, where the store has them."""
    found: dict[str, NDArray[np.float32]] = {}
    for feature in ("mimi", "titanet"):
        if _held(store, feature, data.test.ids):
            found[feature] = store.pooled(feature, data.test.ids)
    return found


def _held(store: Store, feature: str, ids: Sequence[str]) -> bool:
    return feature in store.features and all(id in store.index(feature).rows for id in ids)


def _published(
    proxy: Proxy, data: ProxyData, table: NDArray[np.float32], store: Store, seed: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """The published table: one utterance of each of up to ten seen and ten unseen speakers, mean cosine between different
    ones, "separation" = 1 - that. Similarity within a speaker does not enter, which the row of random vectors shows."""
    seen, unseen = (_first_of_each(voices) for voices in (data.train, data.test))
    both = Voices(
        [*seen.ids, *unseen.ids], np.concatenate([seen.speakers, unseen.speakers]), [*seen.codes, *unseen.codes]
    )
    rows: dict[str, NDArray[Any]] = {
        "raw": _means(both, table),
        "proxy": embed(proxy, both.codes, device),
        "random vectors": np.random.default_rng(seed).standard_normal((len(both.ids), proxy.size)),
    }
    if _held(store, "titanet", both.ids):
        rows["titanet"] = store.pooled("titanet", both.ids)
    told = {}
    for name, vectors in rows.items():
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosine = unit @ unit.T
        of = len(seen.ids)
        off = ~np.eye(len(cosine), dtype=bool)
        parts = {"seen": cosine[:of, :of][off[:of, :of]], "unseen": cosine[of:, of:][off[of:, of:]], "all": cosine[off]}
        told[name] = {f"{part}_cosine": float(values.mean()) for part, values in parts.items()}
        told[name] |= {"seen_unseen_cosine": float(cosine[:of, of:].mean()), "worst_cosine": float(cosine[off].max())}
        told[name] |= {f"{part}_separation": 1 - told[name][f"{part}_cosine"] for part in ("seen", "unseen", "all")}
    return told


def _first_of_each(voices: Voices) -> Voices:
    rows = np.sort(np.unique(voices.speakers, return_index=True)[1])[:10]
    return Voices([voices.ids[r] for r in rows], voices.speakers[rows], [voices.codes[r] for r in rows])


def _agreement(scores: dict[str, NDArray[np.float32]]) -> dict[str, float] | None:
    """Spearman's rank correlation of the trial scores with TitaNet's; None where it is not in the store."""
    from scipy.stats import spearmanr

    if "titanet" not in scores:
        return None
    return {name: float(spearmanr(s, scores["titanet"]).statistic) for name, s in scores.items() if name != "titanet"}


def _notes(scores: dict[str, NDArray[np.float32]]) -> list[str]:
    missing = [name for name in ("mimi", "titanet") if name not in scores]
    return [f"not compared with {name}: the store does not hold it for all of the trials" for name in missing]
