"""`extractors.taken` said of an encoder that nobody knows that it takes no settings; it promises an ExtractorError."""

from __future__ import annotations

import pytest

from featstore.extractors import ExtractorError, taken


def test_an_unknown_encoder_is_told() -> None:
    with pytest.raises(ExtractorError, match="no extractor is called 'mimmi'; did you mean mimi"):
        taken("mimmi", {"weights": "demo"})
