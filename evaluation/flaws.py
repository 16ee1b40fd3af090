"""What was wrong with the reference study, what is done instead, and what it costs in the runs at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from evaluation.experiments import called
from evaluation.results import find
from evaluation.rows import Row
from evaluation.runs import MODEL
from evaluation.words import rate

#: Number, flaw, what is done here.
FLAWS = (
    (1, "The probe was trained on the speakers that it was tested on.", "It is trained on other speakers than the trials'."),
    (2, "Speakers were ordered by arrival in the whole session, then learnt on random crops of it, in which another may come first.",
     "The order is taken anew inside each crop."),
    (3, "Confusion was counted with fixed channels: a right split in another order counted as all wrong.",
     "Speakers are mapped optimally before scoring; both figures are shown."),
    (4, "Real sessions were copied three times before they were shuffled and split, so validation sessions were trained on.",
     "Sessions are split by recording; what shall weigh more is drawn more often."),
    (5, "Padding was trained and scored as silence.", "Padding is masked."),
    (6, "Long files went through the codec in separate chunks of 60 s.", "The codec's state runs through the whole file."),
    (7, "Two different features of one codec went by one name: its 12.5 Hz latent and every second frame at 25 Hz.",
     "They have names of their own; the 12.5 Hz latent is used."),
    (8, "The speaker encoder's frames were stretched to the codec's length, off by up to 0.8 s.",
     "Windows are centred on the codec's frames."),
    (9, "DER was averaged over crops, and turns gained a frame at each end.",
     "Errors are summed over all recordings, then divided, exact to the boundary."),
    (10, "Windows went through temporary files one by one, checkpoints were pickles, missing files were skipped in silence.",
     "Windows are batched in memory, weights are safetensors, what fails is listed."),
    (11, "Features of different size were put side by side as they are, so that the head hardly saw the smaller one.",
     "Every feature is brought to one scale by its training frames."),
    (12, "The rival without such a head was missing: clusters of the speaker encoder's frames where a counter says when.",
     "The cascade is a row of its own, with its ceilings."),
)  # fmt: skip


def flaws(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The list as {"number", "flaw", "sound", "ours"}; "ours" says what these runs show of it, None where they do not."""
    return [
        {"number": number, "flaw": flaw, "sound": sound, "ours": " ".join(_OURS[number](rows)) or None}
        if number in _OURS
        else {"number": number, "flaw": flaw, "sound": sound, "ours": None}
        for number, flaw, sound in FLAWS
    ]


def _both_ways(rows: Sequence[Row], *experiments: str) -> Iterator[tuple[Row, Row]]:
    """Rows under the reference protocol, each with the sound one on the same encoders."""
    for row in rows:
        if row.protocol == "reference" and row.experiment in experiments:
            sound = find(rows, row.experiment, features=tuple(row.features))
            if sound:
                yield row, sound


def _in_sample(rows: Sequence[Row]) -> Iterator[str]:
    for reference, sound in _both_ways(rows, "1.5"):
        if not all("probe" in row.figures for row in (reference, sound)):
            continue
        own, honest = (row.figures["probe"]["eer"] for row in (reference, sound))
        yield f"Here ({called(tuple(sound.features))}): EER {rate(own, None)} so, {rate(honest, None)} on other speakers."


def _order(rows: Sequence[Row]) -> Iterator[str]:
    row = next((r for r in rows if r.diarizes and not r.whole_only and r.experiment != "poc" and r.orders), None)
    if row and row.orders[1]:
        yield f"Here in {100 * row.orders[0] / row.orders[1]:.0f} % of {row.orders[1]} test windows."


def _channels(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row.protocol == "reference" and row.diarizes and row.figures["fixed_der"] is not None:
            yield (
                f"Here ({row.label}, reference protocol): DER {rate(row.figures['fixed_der'], None)} so, "
                f"{rate(row.figures['der'], None)} mapped."
            )


def _mean_of_crops(rows: Sequence[Row]) -> Iterator[str]:
    row = next(
        (r for r in rows if r.diarizes and r.result.get("mean_window_der") is not None and r.experiment != "poc"), None
    )
    if row and len(row.runs) == 1 and row.figures["der"] is not None:
        mean = rate(row.result["mean_window_der"], None)
        yield f"Here ({row.label}): DER {mean} averaged over windows, {rate(row.figures['der'], None)} summed."


def _one_scale(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if (
            row.protocol != "sound"
            or row.whole_only
            or row.unmixes
            or len(row.features) < 2
            or not (sizes := _sizes(row))
        ):
            continue
        told = " and ".join(f"{size:.2g} ({called((name,))})" for name, size in sizes.items())
        text = f"Here ({row.label}) values vary by {told}; on one scale DER {rate(row.figures['der'], None)}"
        if reference := find(rows, row.experiment, "reference", tuple(row.features)):
            mapped = rate(reference.figures["der"], None)
            text += f", as they are {mapped} (mapped; of the reference protocol, which has flaws 2 and 5 too)"
        yield f"{text}."


def _sizes(row: Row) -> dict[str, float]:
    """By feature, what a head divides its values by; nothing where it takes them as they are."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(row.files.path / MODEL, framework="numpy") as file:  # type: ignore[no-untyped-call]
            size = file.get_tensor(_SIZE) if _SIZE in file.keys() else None
    except (OSError, SafetensorError):
        return {}
    if size is None or (size == 1).all():
        return {}
    starts = accumulate((spec.dim for spec in row.features.values()), initial=0)
    return {name: float(size[start]) for name, start in zip(row.features, starts, strict=False)}


def _rival(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if not row.whole_only or row.train_fraction < 1:
            continue
        clusters = row.result["ceilings"].get("true_when_own_who", {}).get("test", {}).get("der")
        fusion = find(rows, "3", features=tuple(row.features))
        told = (
            f"Here ({row.label}): DER {rate(row.figures['der'], row.figures.get('der_interval'))} over whole recordings"
        )
        told += f", {rate(clusters, None)} with the true number of speakers" if clusters is not None else ""
        yield told + (f"; {fusion.label} {rate(fusion.figures['der'], None)} by window." if fusion else ".")


#: The tensor of a head's weights that brings its features to one scale.
_SIZE = "scale.size"
_OURS: dict[int, Callable[[Sequence[Row]], Iterator[str]]] = {
    1: _in_sample, 2: _order, 3: _channels, 9: _mean_of_crops, 11: _one_scale, 12: _rival,
}  # fmt: skip
