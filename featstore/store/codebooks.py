"""The codebooks of a feature of codes: what makes vectors of its whole numbers, on machines without the codec too.

``codebooks/<feature>.safetensors`` holds `books`, `projections` and `projection_of`; the feature's spec pins them by
``settings["codebooks_sha256"]``. What carries a feature (push, pull, export, import) carries its codebooks.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from featstore.files import sync, write_once
from featstore.store.layout import StoreError, codebooks_path, not_readable
from featstore.types import Codebooks, FeatureSpec

#: Mimi's eight books take 18 MB, its 32 take 68 MB; more is not ours and is not read.
MAX_BYTES = 512 << 20


def has_codebooks(spec: FeatureSpec) -> bool:
    """Whether codebooks belong to a feature."""
    return bool(spec.settings.get("codebooks_sha256"))


def to_bytes(codebooks: Codebooks) -> bytes:
    """A safetensors file."""
    data: bytes = save(codebooks.arrays())
    return data


def from_bytes(data: bytes, spec: FeatureSpec, where: object) -> Codebooks:
    """Read what `to_bytes` wrote, if it is what `spec` pins.

    Raises
    ------
    StoreError : damaged, or other codebooks.
    """
    try:
        found = Codebooks(**load(data))
    except (SafetensorError, TypeError, ValueError, KeyError) as error:
        raise StoreError(f"{where}: damaged: no codebooks ({' '.join(str(error).split())})") from None
    if found.sha256 != spec.settings.get("codebooks_sha256"):
        raise StoreError(f"{where}: not the codebooks that feature {spec.name!r} was written with")
    return found


def read_codebooks(store: Path, spec: FeatureSpec) -> Codebooks:
    """The codebooks of a feature in a store.

    Raises
    ------
    StoreError : missing, damaged, or not those that the spec pins.
    """
    path = store / codebooks_path(spec.name)
    again = "; run the same `featstore extract` command: it writes them again"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise StoreError(f"{path}: larger than {MAX_BYTES} bytes, so no codebooks; not read")
        return from_bytes(path.read_bytes(), spec, path)
    except FileNotFoundError:
        raise StoreError(f"{path}: the codebooks are missing{again}") from None
    except OSError as error:
        raise not_readable(path, error) from None


def write_codebooks(store: Path, spec: FeatureSpec, codebooks: Codebooks | None) -> None:
    """Put the codebooks of a feature into its store, unless they are there.

    Raises
    ------
    ValueError : not those that the spec pins; the spec pins some, and there are none here nor there.
    StoreError : those that are there are damaged.
    """
    path = store / codebooks_path(spec.name)
    if not has_codebooks(spec):
        if codebooks is not None:
            raise ValueError(f"feature {spec.name!r}: codebooks, but no settings['codebooks_sha256'] in its spec")
        return
    if codebooks is None and not path.exists():
        raise ValueError(f"feature {spec.name!r}: its spec pins codebooks; pass them: writer(…, codebooks=…)")
    if codebooks is not None:
        if codebooks.sha256 != spec.settings["codebooks_sha256"]:
            raise ValueError(f"feature {spec.name!r}: these are not the codebooks that its spec pins")
        path.parent.mkdir(exist_ok=True)
        write_once(path, to_bytes(codebooks))
        for folder in (path.parent, store):
            sync(folder)
    read_codebooks(store, spec)
