"""The experiments: what each asks, what the reference study published of it, and what things are called."""

from __future__ import annotations

from collections.abc import Sequence

#: The experiments, and what the reference study published of them (PersonaPlex-Voice-Diarization). Names in braces are of
#: the encoders that a run has; `features` are the study's own, of which its figures are.
EXPERIMENTS: dict[str, dict[str, str]] = {
    "1": {
        "name": "baseline",
        "features": "mimi",
        "question": "Is there any speaker signal in the frames of {all}?",
        "published": "EER 35.01 %",
        "measure": "EER, raw cosine of mean-pooled frames, no training",
        "command": "trainers fit probe",
    },
    "1.5": {
        "name": "probe",
        "features": "mimi",
        "question": "Is it linearly separable?",
        "published": "EER 20.48 % (trained on its own test speakers)",
        "measure": "EER, cosine in the probe's space",
        "command": "trainers fit probe",
    },
    "poc": {
        "name": "PoC adapter",
        "features": "mimi",
        "question": "Does the adapter idea work at all?",
        "published": "none",
        "measure": "DER on two-speaker mixtures",
        "command": "trainers fit adapter --set experiment=poc",
    },
    "2": {
        "name": "adapter",
        "features": "mimi",
        "question": "Can a small head on frozen {all} diarize?",
        "published": "FA+Miss 4.6 %, confusion ≈ 33 %; DER 65.03 % in step 3",
        "measure": "DER",
        "command": "trainers fit adapter",
    },
    "2.5": {
        "name": "unfreeze",
        "features": "mimi",
        "question": "Can fine-tuning the top layers of {all} unlock it?",
        "published": "confusion 33 % → 46 % (worse)",
        "measure": "DER",
        "command": "trainers fit unfreeze",
    },
    "3": {
        "name": "fusion",
        "features": "mimi+titanet",
        "question": "{first} for when, {last} for who?",
        "published": "DER 60.93 % (Mimi alone 65.03 %)",
        "measure": "DER",
        "command": "trainers fit fusion",
    },
    "4": {
        "name": "cascade",
        "features": "mimi+titanet",
        "question": "{first} for when, {last} for who, taken literally?",
        "published": "none",
        "measure": "DER of whole recordings, one identity throughout",
        "command": "trainers fit cascade",
    },
    "5": {
        "name": "proxy",
        "features": "mimi-codes",
        "question": "Who speaks, by {all} alone, with gradients to their logits?",
        "published": "no error rate; 1 − mean cosine between speakers 0.81 (random vectors: 1)",
        "measure": "EER, cosine of embeddings of codes",
        "command": "trainers fit proxy",
    },
    "6": {
        "name": "unmixing",
        "features": "mimi+titanet",
        "question": "Which voices are in a mixture, by {first}, taught by {last}?",
        "published": "cosine to the teacher 0.54, ARI 0.69 (slots chosen by the clean target, true number of clusters)",
        "measure": "voices whose name is not found among enrolled ones",
        "command": "trainers fit unmix",
    },
    "7": {
        "name": "extraction",
        "features": "titanet",
        "question": "Can one voice be taken out of a mixture, told by {all} whose it is?",
        "published": "SI-SDR −1.90 → 10.60 dB (whom to extract chosen by the clean voice; ΔOVRL on real recordings −0.16 … +0.20)",
        "measure": "SI-SDRi, asked for by another utterance",
        "command": "trainers fit tse",
    },
}
#: Which experiment a kind of run is of, where it does not say.
OF_KIND = {
    "probe": "1.5",
    "adapter": "2",
    "unfreeze": "2.5",
    "fusion": "3",
    "cascade": "4",
    "proxy": "5",
    "unmix": "6",
    "tse": "7",
}

#: DER that the reference study published, beside ours in the chart: label, figure.
PUBLISHED = (("published: adapter on Mimi", 0.6503), ("published: fusion of Mimi and TitaNet", 0.6093))
PUBLISHED_NOTE = "AMI, fixed channels, published weights: of other data and another measure, not comparable"

#: Encoders whose part is known; of others the runs say it (see `evaluation.answer.pairs`).
CODECS, SPEAKER_ENCODERS = ("mimi",), ("titanet",)
_CALLED = {"mimi": "Mimi", "mimi-codes": "Mimi's codes", "titanet": "TitaNet"}


def called(features: Sequence[str]) -> str:
    """Encoders as a sentence names them: "Mimi and TitaNet"."""
    names = [_CALLED.get(feature, feature) for feature in features]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else "no encoder"


def label_of(experiment: str, features: Sequence[str], *, when: Sequence[str] = (), who: Sequence[str] = ()) -> str:
    """What a head is called: "adapter on Mimi", "fusion of lyra and resemblyzer".

    Parameters
    ----------
    when, who : of a cascade, the features of its two parts; of unmixing, what it hears and its teacher.
    """
    names = called(features)
    if experiment == "1":
        return f"raw cosine of {names}"
    if experiment == "2.5":
        return f"adapter on {names}, top layers unfrozen"
    if experiment == "3":
        return f"fusion of {names}"
    if experiment == "4":
        return f"cascade: {called(when or features[:1])} says when, {called(who or features[-1:])} who"
    if experiment == "6":
        return f"set of voices from {called(when or features[:-1])}, taught by {called(who or features[-1:])}"
    if experiment == "7":
        return f"one voice out of a mixture, told by {names}"
    return f"{EXPERIMENTS[experiment]['name']} on {names}"


def asked(experiment: str, features: Sequence[str]) -> dict[str, str]:
    """Question, published figure and the rest of an experiment, for these encoders."""
    told = dict(EXPERIMENTS[experiment])
    own = tuple(told.pop("features").split("+"))
    given = tuple(features) or own
    told["question"] = told["question"].format(
        all=called(given), first=called(given[:-1] if experiment == "6" else given[:1]), last=called(given[-1:])
    )
    if given != own and told["published"] != "none":
        told["published"] = f"of {called(own)}: {told['published']}"
    if given != own and experiment == "4":
        told["command"] += f" --set when={given[0]} --set who={given[-1]}"
    elif given != own and experiment == "6":
        told["command"] += f" --set feature={'+'.join(given[:-1])} --set teacher={given[-1]}"
    elif given != own:
        told["command"] += f" --set feature={'+'.join(given)}"
    return told
