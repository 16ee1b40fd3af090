"""Opening an s3:// address deleted the caller's empty AWS_ENDPOINT… variables."""

from __future__ import annotations

import os

import pytest

from featstore import StoreError
from featstore.remote.client import Remote

pytest.importorskip("obstore")
HERE = "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({"AWS_ENDPOINT": "", "AWS_ENDPOINT_URL": HERE}, HERE),
        ({"AWS_ENDPOINT": HERE, "AWS_ENDPOINT_URL": ""}, HERE),
        ({"AWS_ENDPOINT_URL": "", "AWS_REGION": "eu-west-1"}, "https://s3.eu-west-1.amazonaws.com"),
        ({"AWS_ENDPOINT_URL_DYNAMODB": ""}, ""),
    ],
)
def test_the_environment_stays_as_it_is(
    variables: dict[str, str], endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    remote = Remote("s3://bucket/store")
    assert remote.endpoint == remote._store.config.get("endpoint", "") == endpoint
    assert dict(os.environ) == before


def test_the_one_that_obstore_cannot_be_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    with pytest.raises(StoreError, match="^AWS_ENDPOINT_URL_S3: is empty; unset it"):
        Remote("s3://bucket/store")
