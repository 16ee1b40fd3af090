"""Settings of the cascade."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from featstore.settings import Count, NotNegative, Positive, Several, settings
from trainers.config import Features
from trainers.diarization.config import SessionsConfig, Share

CLUSTERINGS = ("average", "complete", "spectral")


def _known(values: tuple[str, ...]) -> tuple[str, ...]:
    if not set(values) <= set(CLUSTERINGS):
        raise ValueError(f"some of {', '.join(CLUSTERINGS)}")
    return values


_Cosine = Annotated[float, Field(gt=0, le=2)]
_Part = Annotated[float, Field(gt=0, le=1)]


@settings
class CascadeConfig(SessionsConfig):
    """When: how many speak in each frame. Who: clusters of frames in which one speaks. Both decide together."""

    kind: Literal["cascade"] = "cascade"
    when: Features = "mimi"
    who: Features = "titanet"
    # when: the head that counts
    width: Count = Field(128, description="of the convolutional head")
    dropout: Share = Field(0.1, description="in it")
    substeps: Count = Field(4, description="answers a frame: boundaries are finer than frames")
    steps: Count = Field(1000, description="of training")
    batch_size: Count = Field(16, description="crops a step")
    crop_s: Positive = Field(20.0, description="length of a training example")
    lr: Positive = Field(2e-3, description="highest learning rate of AdamW; rises over the first tenth, then falls")
    weight_decay: NotNegative = Field(1e-2, description="of AdamW")
    counted: _Part = Field(0.999, description="share of the training frames whose number of speakers is told apart")
    # who: the clusters
    piece_s: Positive = Field(0.64, description="stretches of one speaker are cut into pieces of about this length")
    edge_s: NotNegative = Field(0.24, description="left out at both ends of such a stretch")
    min_share: Share = Field(0.05, description="of the time of one speaker; a smaller cluster is no voice")
    # chosen on dev
    clustering: Annotated[Several[str], AfterValidator(_known)] = Field(
        ("average", "complete"), description="average or complete linkage, or spectral"
    )
    thresholds: Several[_Cosine] = Field(
        tuple(round(0.05 * k, 2) for k in range(2, 21)), description="cosine distances at which linkage ends"
    )
    neighbours: Several[_Part] = Field(
        (0.1, 0.2, 0.3, 0.4), description="share of the pieces that are joined to a piece; spectral only"
    )
    blends: Several[NotNegative] = Field(
        (0.0, 12.0, 25.0, 40.0), description="weight of a frame being nearer to the sum of two voices than to one"
    )
    # both; weights and prices are against a log-probability of one answer of the head
    nearest: NotNegative = Field(5.0, description="weight of a frame being nearer to other voices")
    change: NotNegative = Field(10.0, description="price of a voice that begins or ends")
    at_once: Count = Field(2, description="voices at once at most")

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.when_features, *self.who_features)))

    @property
    def when_features(self) -> tuple[str, ...]:
        """Names of the features that the head counts on, in order."""
        return tuple(self.when.split("+"))

    @property
    def who_features(self) -> tuple[str, ...]:
        """Names of the features that are clustered, in order."""
        return tuple(self.who.split("+"))

    @model_validator(mode="after")
    def _sound(self) -> CascadeConfig:
        if self.protocol == "reference":
            raise ValueError(
                "the reference study has no cascade, so there is no reference protocol of it: leave it out"
            )
        return self
