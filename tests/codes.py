"""Made-up codes for tests: a speaker prefers some entries of each book."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import featstore
from featstore import MIMI_GRID, Codebooks, FeatureSpec, Store, Utterance


def codebooks(n_q: int = 3, bins: int = 16, dim: int = 12, seed: int = 0) -> Codebooks:
    rng = np.random.default_rng(seed)
    books = rng.standard_normal((n_q, bins, 4)).astype(np.float32)
    projections = rng.standard_normal((2, dim, 4)).astype(np.float32)
    return Codebooks(books, projections, np.minimum(np.arange(n_q), 1).astype(np.int32))


def spec(books: Codebooks, **settings: object) -> FeatureSpec:
    facts = {"dtype": "int16", "sample_rate_hz": 24000, "grid": MIMI_GRID, "model": "made up", "weights_sha256": ""}
    settings = {"codebooks_sha256": books.sha256, **settings}
    return FeatureSpec(name="mimi-codes", dim=len(books.books), settings=settings, **facts)


def make_store(
    path: Path, counts: dict[str, int] | None = None, utterances: int = 3, frames: int = 40, seed: int = 1
) -> Store:
    """Speakers of each split with some utterances each."""
    books, rng = codebooks(), np.random.default_rng(seed)
    n_q, bins, _ = books.books.shape
    with featstore.writer(path, spec(books, weights="random:0"), codebooks=books) as writer:
        for split, speakers in (counts or {"train": 6, "dev": 3, "test": 4}).items():
            for s in range(speakers):
                taste = rng.dirichlet(np.full(bins, 0.3), size=n_q)
                for k in range(utterances):
                    id = f"{split}{s}/{k}"
                    codes = np.stack([rng.choice(bins, frames + k, p=row) for row in taste], axis=1)
                    writer.add(Utterance(id, f"{id}.wav", 0.0, frames * 0.08, id, f"{split}{s}", split), codes)
    return featstore.open(path)
