"""A TitaNet whose embeddings are not 192-d was taken: every utterance failed, and the store kept a spec of it.

That spec held the wrong weights' SHA-256, so the right ones were refused afterwards.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from featstore.extractors import ExtractorError, create
from featstore.extractors.titanet_nemo import TITANET_NANO, build_titanet
from tests.featstore.extractors.test_nemo_archive import nemo_file


def test_it_is_refused_when_the_encoder_is_made(tmp_path: Path) -> None:
    pytest.importorskip("nemo.collections.asr", reason="nemo_toolkit[asr] is not installed")
    config = {**TITANET_NANO, "decoder": {**TITANET_NANO["decoder"], "emb_sizes": 256}}
    path = nemo_file(tmp_path / "wide.nemo", config, build_titanet(config).state_dict())
    with pytest.raises(ExtractorError, match="embeddings of 192 dimensions, found 256") as caught:
        create("titanet", weights=str(path), device="cpu")
    assert "\n" not in str(caught.value)
