"""Speech in, features out: manifests, extraction, and the store that holds the frames.

>>> import featstore
>>> store = featstore.open("STORE")
>>> store.frames("mimi", store.ids[0], start=0, stop=1125)
"""

from featstore.layout import FingerprintMismatch, StoreError
from featstore.store import Store
from featstore.store import open_store as open
from featstore.types import MIMI_GRID, FeatureSpec, FrameGrid, Turn, Utterance

__all__ = [
    "MIMI_GRID",
    "FeatureSpec",
    "FingerprintMismatch",
    "FrameGrid",
    "Store",
    "StoreError",
    "Turn",
    "Utterance",
    "open",
    "writer",
]


def writer(path, spec, **settings):
    """Open a store for adding one feature; see `featstore.commit.writer`."""
    from featstore.commit import writer as open_writer  # zarr-python takes half a second: only who writes pays

    return open_writer(path, spec, **settings)
