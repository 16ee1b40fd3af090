"""Settings of the proxy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from featstore.settings import Count, NotNegative, Positive, Several, WholeNumber, settings
from trainers.config import FitConfig

LOSSES = ("contrastive", "margin", "teacher")


def _known(values: tuple[str, ...]) -> tuple[str, ...]:
    if not set(values) <= set(LOSSES) or len(set(values)) < len(values):
        raise ValueError(f"some of {', '.join(LOSSES)}, each once")
    return values


_Share = Annotated[float, Field(ge=0, le=1)]


@settings
class ProxyConfig(FitConfig):
    """The proxy: codes of a codec to a speaker embedding. Published: contrastive, lr 1e-4, some 25,000 steps."""

    kind: Literal["proxy"] = "proxy"
    feature: str = Field("mimi-codes", description="the codes, of the store")
    teacher: str = Field("titanet", description="the feature whose mean is the target of the loss 'teacher'")
    trials: str = Field("", description="the trial list")
    channels: Count = Field(512, description="of the network, a multiple of 8; 128 is enough for little data")
    size: Count = Field(192, description="of the embedding; with the loss 'teacher' the teacher's")
    losses: Annotated[Several[str], AfterValidator(_known)] = Field(
        LOSSES, description="each is trained with; the one with the lowest EER on dev, of codes and logits, is kept"
    )
    judges: WholeNumber = Field(1, description="more starts of the best loss, which only judge what gradients do")
    steps: Count = Field(2000, description="of training, with each loss and for each judge")
    speakers: Count = Field(32, description="a step, two crops of each")
    crop_s: Positive = Field(3.0, description="length of a crop")
    lr: Positive = Field(1e-3, description="highest learning rate of AdamW; rises over the first tenth, then falls")
    weight_decay: NotNegative = Field(1e-5, description="of AdamW, as published")
    negatives: NotNegative = Field(5.0, description="contrastive: weight of pairs of two speakers, as published")
    cosine_margin: NotNegative = Field(0.0, description="contrastive: cosine up to which two speakers cost nothing")
    angle: NotNegative = Field(0.2, description="margin: the angle by which a crop must be nearer to its speaker")
    scale: Positive = Field(30.0, description="margin: of the cosines")
    soft: _Share = Field(0.4, description="share of the crops that come as logits")
    corrupted: _Share = Field(0.25, description="share of the crops of which some codes are wrong")
    pairs: Count = Field(40, description="of speakers, in the gradient test")
    climb: Count = Field(80, description="steps along the gradient, in that test")
    looks: Count = Field(10, description="times that dev is looked at, with each loss")
    checkpoint_steps: WholeNumber = Field(200, description="steps between checkpoints; 0: at looks only")

    @property
    def features(self) -> tuple[str, ...]:
        return (self.feature, self.teacher) if "teacher" in self.losses else (self.feature,)

    @model_validator(mode="after")
    def _sound(self) -> ProxyConfig:
        if self.protocol == "reference":
            raise ValueError(
                "the published procedure splits by clip and reports no error rate, so there is no reference protocol of "
                "it: leave it out (its own measure stands in every result)"
            )
        if self.soft + self.corrupted > 1:
            raise ValueError(f"soft and corrupted are shares of all crops, found {self.soft} and {self.corrupted}")
        if self.channels % 8:
            raise ValueError(f"channels must be a multiple of 8, found {self.channels}")
        return self
