"""Encoders by name: "mimi", "mimi-codes", "titanet", and whatever other packages add through an entry point."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featstore.types import FeatureSpec

#: Other packages add an encoder with an entry point of this group: name = "package.module:factory".
GROUP = "featstore.extractors"

#: name → (module, factory, import names of what the extra `extract` brings)
_BUILT_IN = {
    "mimi": ("featstore.extractors.mimi", "MimiExtractor", ("moshi",)),
    "mimi-codes": ("featstore.extractors.mimi_codes", "MimiCodesExtractor", ("moshi",)),
    "titanet": ("featstore.extractors.titanet", "TitaNetExtractor", ("nemo", "omegaconf")),
}


def nobody(seconds: float) -> None:
    """What an encoder tells while nobody listens."""


class ExtractorError(ValueError):
    """An encoder cannot be made or cannot take its input; the text says what to do."""


@runtime_checkable
class Extractor(Protocol):
    """Speech in, frames out. ``featstore.testing`` checks what any implementation must hold.

    Attributes
    ----------
    spec : what the frames are; fixed when the extractor is made.
    device, batch_s : optional; "cpu", "cuda:0", …, and the seconds of audio that suit one call.
    told : optional; who has it calls it, from any thread, with the seconds of audio that it has done since the last call.
    codebooks : of codes only; what makes vectors of them (`featstore.Codebooks`).
    """

    spec: FeatureSpec

    def extract(self, waves: Sequence[NDArray[np.float32]]) -> list[NDArray[Any]]:
        """Frames of every wave, in order.

        Parameters
        ----------
        waves : each ``(samples,)`` float32 at ``spec.sample_rate_hz``, mono, full scale ±1.

        Returns
        -------
        list of ``(frames, spec.dim)`` float32, codes int16. A wave's frames do not depend on the waves beside it.

        Raises
        ------
        ValueError : a wave is empty, not one-dimensional or not finite.
        """
        ...


def names() -> list[str]:
    """Every name `create` knows, sorted."""
    return sorted({*_BUILT_IN, *_third_party()})


def create(name: str, **settings: Any) -> Extractor:
    """Make an extractor.

    Parameters
    ----------
    name : "mimi", "mimi-codes", "titanet" or an entry point of the group ``featstore.extractors``.
    settings : passed to the factory: ``weights``, ``device``, ``precision`` and the encoder's own. Those that
        are None are left out, so that a command line can hand over what was not given.

    Raises
    ------
    ExtractorError : unknown name, unknown setting, or the packages it needs are not installed.
    """
    settings = {key: value for key, value in settings.items() if value is not None}
    factory = _factory(name)
    _check_settings(name, factory, settings)
    try:
        extractor = factory(**settings)
    except ModuleNotFoundError as error:
        needs = _BUILT_IN[name][2] if name in _BUILT_IN else ()
        if (error.name or "").split(".")[0] not in needs:
            raise
        raise ExtractorError(
            f"extractor {name!r} needs {needs[0]}, which is not installed; where whowhen was cloned: pip install -e '.[extract]'"
        ) from None
    except Exception as error:
        if name in _BUILT_IN:
            raise
        who = f"extractor {name!r} ({_third_party()[name].value})"
        if isinstance(error, ValueError | KeyError | OSError):
            raise ExtractorError(f"{who}: {error}") from error
        error.add_note(f"in {who}")
        raise
    if not isinstance(getattr(extractor, "spec", None), FeatureSpec) or not callable(
        getattr(extractor, "extract", None)
    ):
        raise ExtractorError(
            f"extractor {name!r}: expected an object with `spec` (a FeatureSpec) and `extract`, found {extractor!r}"
        )
    return extractor


def taken(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a spec's settings that the encoder of that name takes, so that `create` makes it again.

    Raises
    ------
    ExtractorError : unknown name.
    """
    factory = _factory(name)  # whose error is a ValueError too
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # compiled code need not say what it takes
        return {}
    return {key: value for key, value in settings.items() if key in parameters}


def _check_settings(name: str, factory: Callable[..., Extractor], settings: dict[str, Any]) -> None:
    try:
        takes = inspect.signature(factory)
    except ValueError:  # compiled code need not say what it takes
        return
    try:
        takes.bind(**settings)
    except TypeError as error:
        unknown = next((key for key in settings if key not in takes.parameters), None)
        why = f"no setting {unknown!r}; {name} takes: {', '.join(takes.parameters)}" if unknown else str(error)
        raise ExtractorError(f"extractor {name!r} does not take these settings: {why}") from None


def checked_wave(wave: ArrayLike, spec: FeatureSpec) -> NDArray[np.float32]:
    """`wave` as contiguous float32, or a clear refusal.

    Raises
    ------
    ExtractorError : empty, not one-dimensional, not a real number, NaN or infinite.
    """
    found = np.asarray(wave)
    wants = f"feature {spec.name!r}: expected a wave of shape (samples,), finite, at {spec.sample_rate_hz} Hz"
    if found.ndim != 1 or found.dtype.kind not in "fiu":
        raise ExtractorError(f"{wants}; found {found.dtype} of shape {found.shape}")
    if found.size == 0:
        raise ExtractorError(f"{wants}; found no samples")
    samples = np.ascontiguousarray(found, dtype=np.float32)
    if not np.isfinite(samples).all():
        bad = int(np.flatnonzero(~np.isfinite(samples))[0])
        raise ExtractorError(f"{wants}; found {samples[bad]} at sample {bad} ({bad / spec.sample_rate_hz:.3f} s)")
    return samples


def checked_frames(frames: NDArray[np.float32], spec: FeatureSpec) -> NDArray[np.float32]:
    """`frames` if they are finite, else a clear refusal: nothing that is not a number goes into a store.

    Raises
    ------
    ExtractorError : NaN or infinite.
    """
    if not np.isfinite(frames).all():
        precision = spec.settings.get("precision", "float32")
        hint = "use --precision float32" if precision != "float32" else "the audio's level is beyond all bounds"
        raise ExtractorError(f"feature {spec.name!r}: the encoder's output is not finite in {precision}; {hint}")
    return frames


def _third_party() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _factory(name: str) -> Callable[..., Extractor]:
    if name in _BUILT_IN:
        module, factory, _ = _BUILT_IN[name]
        made: Callable[..., Extractor] = getattr(importlib.import_module(module), factory)
        return made
    points = _third_party()
    if name not in points:
        like = difflib.get_close_matches(name.lower(), names(), n=1)
        near = f"; did you mean {like[0]}?" if like else ""
        raise ExtractorError(
            f"no extractor is called {name!r}{near}; known: {', '.join(names())}. Another package can add one with an "
            f"entry point in the group {GROUP!r}"
        )
    try:
        made = points[name].load()
    except (ImportError, AttributeError) as error:
        raise ExtractorError(f"extractor {name!r} ({points[name].value}) cannot be loaded: {error}") from error
    return made
