"""Fit a set predictor: train it, choose on dev, measure it and its rivals on test mixtures, follow people in recordings."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from evaluation.runs import MODEL, RESULT
from featstore import Store
from featstore.extractors.device import pick_device
from trainers.checkpoint import nothing_to_do
from trainers.progress import Progress, Unseen
from trainers.runs import Run
from trainers.scale import scale_of
from trainers.unmix.config import UnmixConfig
from trainers.unmix.data import UnmixData, load_data
from trainers.unmix.loop import State, Training, make_network
from trainers.unmix.measure import Heard, by_cardinality, existence_for, figures, systems, total
from trainers.unmix.network import Unmixer
from trainers.unmix.rivals import grouping_for
from trainers.unmix.talks import Talk, talk_of, try_memory


def fit_unmix(
    run: Run[UnmixConfig],
    store: Store,
    *,
    progress: Progress | None = None,
    on_step: Callable[[State], None] | None = None,
) -> dict[str, Any]:
    """Train (or go on), choose thresholds on dev, measure on test once, and fill the run's folder.

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
    network = make_network(config, data.train[0].frames.shape[1], len(data.centre))
    network.scale.take(scale_of(store, config.inputs, [m.id for m in data.train]))
    network.centre.copy_(torch.from_numpy(data.centre))
    if network.own_centre is not None and data.windows_centre is not None:
        network.own_centre.copy_(torch.from_numpy(data.windows_centre))
    device = pick_device(config.device)
    run.begin()
    training = Training(run, data, network, device, progress if progress is not None else Unseen(), on_step)
    training.to_the_end()
    tensors, facts = run.read_tensors(MODEL)
    network.load_state_dict(tensors)
    return _finish(run, store, data, training, facts)


def _finish(
    run: Run[UnmixConfig], store: Store, data: UnmixData, training: Training, facts: dict[str, Any]
) -> dict[str, Any]:
    config, state, network, device = run.config, training.state, training.network, training.device
    began = time.perf_counter()
    dev, test = (Heard.of(of, network, store, config.heard_in, device) for of in (data.dev, data.test))
    # Counts that nothing was trained on decide nothing.
    known = {len(m.voices) for m in data.train}
    usual = Heard(*_only(dev, known))
    threshold = existence_for(usual)
    both = usual.windows is not None and test.windows is not None
    grouping = grouping_for(usual.windows or [], usual.counts, config.slots) if both else None
    joining = grouping_for(usual.parts, usual.counts, config.slots) if usual.parts and test.parts else None
    chosen = (threshold, grouping, config.slots, config.seed, joining)
    on_dev = figures(usual.mixtures, systems(usual, data.train, *chosen), config.seed)
    everything = systems(test, data.train, *chosen)
    seen, made = Heard(*_only(test, known)), {n: s.of(test.counts, known) for n, s in everything.items()}
    on_test, counts = figures(seen.mixtures, made, config.seed), Counter(seen.counts)
    result = {
        "kind": config.kind,
        "protocol": config.protocol,
        "features": list(config.features),
        "inputs": list(config.inputs),
        "teacher": config.teacher,
        "warnings": run.warnings,
        "notes": [
            *data.notes,
            *([] if both else [f"no windows of {config.heard_in}: it was not extracted of the mixtures"]),
        ],
        "num_mixtures": len(data.train),
        "num_speakers": len(training.numbers),
        "num_test_mixtures": len(seen.mixtures),
        "num_test_speakers": len({s for m in seen.mixtures for s in m.speakers}),
        **training.facts(network),
        "dev_cosine": facts["dev_cosine"],
        "best_step": facts["step"],
        "input_share": None,
        "decoding": {
            "existence": threshold,
            "windows": None if grouping is None else {"threshold": grouping.threshold, "share": grouping.min_share},
            **({} if joining is None else {"parts": {"threshold": joining.threshold, "share": joining.min_share}}),
            "tuned_on": "dev",
        },
        "dev": {
            name: {
                "identified": total(told["identified"], "hits", "voices"),
                "counted": total(told["counting"], "right", "mixtures") if told["counting"] else None,
                "cosine": told["cosine"],
            }
            for name, told in on_dev.items()
        },
        "names_found": total(on_test["unmix"]["identified"], "hits", "voices"),
        "majority": max(counts.values()) / sum(counts.values()),
        "sets": on_test,
        "by_voices": by_cardinality(test.mixtures, everything, lambda n: n in known),
        "memory": _memory(config, store, data, network, threshold, grouping, device),
        "seconds": round(state.seconds + time.perf_counter() - began, 3),
    }
    run.write_json(RESULT, result)
    return result


def _only(heard: Heard, known: set[int]) -> tuple[Any, ...]:
    """The part of `heard` with as many voices as were trained on."""
    keep = [k for k, count in enumerate(heard.counts) if count in known]

    def part(values: list[Any] | None) -> list[Any] | None:
        return None if values is None else [values[k] for k in keep]

    return part(heard.mixtures), part(heard.sets), part(heard.existence), part(heard.windows)


def _memory(
    config: UnmixConfig,
    store: Store,
    data: UnmixData,
    network: Unmixer,
    threshold: float,
    grouping: Any,
    device: torch.device,
) -> dict[str, Any] | None:
    if not all(data.recordings.values()):
        return None
    talks: dict[str, dict[str, Talk]] = {
        split: {
            id: talk_of(store, id, turns, network, config, threshold, grouping, device)
            for id, turns in found.items()
            if id in store.index(config.inputs[0]).rows
        }
        for split, found in data.recordings.items()
    }
    return (
        try_memory(talks["dev"], talks["test"], config.memory_thresholds, config.slots) if all(talks.values()) else None
    )
