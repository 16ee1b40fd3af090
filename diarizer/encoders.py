"""The encoders that a run was trained on, made again from what the run says of them; any other is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from featstore import FeatureSpec, FingerprintMismatch
from featstore.extractors import Extractor, create, taken
from trainers.runs import Run, RunError


def encoders_of(run: Run, weights: Mapping[str, str], device: str) -> dict[str, Extractor]:
    """Encoders by feature, as the run's features were made.

    Parameters
    ----------
    weights : where those lie that are elsewhere now, by feature.

    Raises
    ------
    RunError : `weights` names another feature; nobody wrote down where the weights are.
    FingerprintMismatch : these are other weights or settings than the run's.
    ExtractorError : an encoder cannot be made.
    """
    if unknown := set(weights) - set(run.features):
        raise RunError(f"--weights {min(unknown)}=…: {run.path} was trained on {', '.join(run.features)}")
    return {name: _encoder(run, spec, weights.get(name), device) for name, spec in run.features.items()}


def _encoder(run: Run, spec: FeatureSpec, weights: str | None, device: str) -> Extractor:
    recorded = {**spec.settings, "weights": weights or spec.settings.get("weights"), "precision": "auto"}
    # Half precision is used where it changes nothing, so here it may be what suits the machine.
    settings = taken(spec.name, {**recorded, "device": device})
    if settings.get("weights") == "file":
        raise RunError(
            f"{run.path}: feature {spec.name!r} was made with weights of a file (SHA-256 {spec.weights_sha256[:12]}…); "
            f"say where it is: --weights {spec.name}=PATH"
        )
    if weights and "weights" not in settings:
        raise RunError(f"--weights {spec.name}={weights}: this encoder brings its own weights; leave it out")
    made = create(spec.name, **settings)
    kept = {key: spec.settings[key] for key in ("weights", "precision") if key in spec.settings}
    found = replace(made.spec, settings={**made.spec.settings, **kept})
    if found.fingerprint != spec.fingerprint:
        differs = [
            f"{key} {_short(getattr(found, key))} (the run: {_short(getattr(spec, key))})"
            for key in ("model", "weights_sha256", "dim", "dtype", "sample_rate_hz", "grid", "settings")
            if getattr(found, key) != getattr(spec, key)
        ]
        where = f"Give the weights it was trained on (--weights {spec.name}=PATH)"
        if found.weights_sha256 == spec.weights_sha256:
            where = "The weights are the same: use the encoder as it was then"
        raise FingerprintMismatch(
            f"{run.path}: was trained on feature {spec.name!r} with fingerprint {spec.fingerprint}, this encoder has "
            f"{found.fingerprint}: {'; '.join(differs)}. {where}, or train a new run on features of these"
        )
    return made


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text
