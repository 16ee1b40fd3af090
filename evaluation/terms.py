"""Words that the report's page needs explained where they first stand, and what others measured."""

from __future__ import annotations

#: What it is, figure, source.
YARDSTICKS = (
    ("Mimi's quantised tokens under an ECAPA head, VoxCeleb1", "EER 18.68 % (8 codebooks), 23.91 % (32)", "DASB, arXiv 2506.10274"),
    ("EnCodec / DAC / SpeechTokenizer, same head", "EER 13.54 / 15.86 / 10.45 %", "DASB, arXiv 2506.10274"),
    ("continuous self-supervised features, same head", "EER 2.10 %", "DASB, arXiv 2506.10274"),
    ("TitaNet-L, VoxCeleb1-O cleaned", "EER 0.66–0.68 %", "NVIDIA's model card"),
    ("pyannote 3.1, AMI test (headset mix / array)", "DER 18.8 / 22.7 %", "pyannote; no collar, overlap scored"),
    ("DiariZen-L, AMI test (array)", "DER 13.9 %", "no collar, overlap scored"),
)  # fmt: skip

#: A term, or its variants divided by " / ", and what it means.
TERMS = {
    "DER": "Diarization error rate: missed, false-alarm and confused speaker time over reference speaker time, exact to the "
    "boundary, errors summed over all recordings before they are divided. It can exceed 100 %.",
    "EER": "Equal error rate: the share of wrong answers to “same speaker?” at the threshold where both kinds of error are "
    "equally frequent: where the ROC, its points joined by straight lines, crosses miss = false alarm. Guessing gives 50 %.",
    "minDCF": "Least detection cost over thresholds at target priors 0.01 and 0.05, both errors costing 1, divided by the "
    "better trivial system's.",
    "JER": "Jaccard error rate: the mean over reference speakers of the share of their time that is wrong.",
    "FA+Miss": "False alarms and missed speech over reference speaker time: how well “when” is known, whoever it is.",
    "confusion": "Speech given to the wrong speaker, over reference speaker time: how well “who” is known.",
    "fixed channels": "The reference study's way of scoring: the i-th output must be the i-th speaker to arrive, so a right "
    "split in another order counts as wrong. Everywhere else outputs are mapped: the best one-to-one match with the speakers.",
    "per window / by window / window": "Recordings are cut into consecutive windows of one training crop that cover them, and "
    "speakers are matched anew in each: nobody has to be recognised in the next. RECORDING@SECONDS is the window of a "
    "recording that starts there.",
    "whole recording": "One identity throughout: who comes back must get the same output again. Harder than windows.",
    "collar": "Seconds around each reference boundary that are not scored. Here there is none, and overlap is scored.",
    "ceiling": "What a cascade would score if one of its two parts were perfect; the larger gain is the weaker part.",
    "one speaker throughout": "A system that knows nothing: somebody speaks all the time, and it is always the same voice.",
    "true speech, one speaker": "A system that knows when anybody speaks, and tells no voices apart.",
    "random cosine": "A score that has nothing to do with the speakers: EER 50 %.",
    "SI-SDR": "Scale-invariant signal-to-distortion ratio: the power of what is the reference, however loud, over the power of "
    "the rest, in dB. SI-SDRi is by how much it is above the mixture's own.",
    "enrolled / enrolment": "Another recording of the same person, in which something else is said.",
    "ESTOI": "Extended short-time objective intelligibility, 0 to 1.",
    "PESQ": "Perceptual evaluation of speech quality, wide band, 1 to 4.64.",
    "DNSMOS": "What listeners would say of the sound, 1 to 5, as a network guesses without a reference.",
    "reference protocol": "The published procedure, its flaws included, repeated on the data here.",
    "sound protocol": "The same experiment with the flaws mended.",
    "95 % interval / interval": "How far chance alone moves a figure, by bootstrap: of an EER by resampling speakers, of a DER "
    "by resampling recordings; of a difference, both sides on the same resamples.",
    "dev": "Recordings that are neither trained on nor tested on: what is chosen (thresholds, epochs) is chosen on them.",
    "seed": "Decides all that training draws. A figure of several seeds is their mean; its spread, from the least to the "
    "greatest of them, is another thing than the interval.",
}
