"""Settings of the set predictor."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from featstore.settings import Count, NotNegative, Positive, Several, WholeNumber, settings
from trainers.config import Features, FitConfig


@settings
class UnmixConfig(FitConfig):
    """Unmixing: a mixture's frames to the embeddings of its voices. Published: two slots on WavLM; these sizes are ours."""

    kind: Literal["unmix"] = "unmix"
    feature: Features = "mimi"
    teacher: str = Field(
        "titanet", description="the feature whose mean over a voice's own track is that voice's target"
    )
    slots: Count = Field(4, description="voices that can be found at once")
    width: Count = Field(128, description="of the Transformer")
    layers: Count = Field(3, description="of the Transformer")
    heads: Count = Field(4, description="of its attention; divides width")
    conv_frames: Count = Field(5, description="frames that the first layer sees at once")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="in the Transformer")
    input_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="of the features' dimensions, a mixture"
    )
    windows: bool = Field(
        False,
        description="where the teacher's frames of the mixture stand last in feature: slots are weighted means of them and a "
        "learnt correction",
    )
    correction: bool = Field(True, description="of slots of windows; off: nothing but their weights is learnt")
    windows_of: str = Field(
        "",
        description="the feature whose frames of the mixture are the windows, on a mean of their own: the teacher's network on "
        'other lengths; "": the teacher\'s own',
    )
    steps: Count = Field(4000, description="of training")
    batch_size: Count = Field(32, description="mixtures a step")
    lr: Positive = Field(1e-3, description="highest learning rate of AdamW; rises over the first tenth, then falls")
    weight_decay: NotNegative = Field(0.01, description="of AdamW")
    existence: NotNegative = Field(1.0, description="weight of whether a slot holds a voice")
    apart: NotNegative = Field(1.0, description="weight of slots that are alike")
    apart_margin: float = Field(0.3, description="cosine up to which two slots are not alike")
    contrast: NotNegative = Field(0.5, description="weight of telling a voice from the others of the batch")
    scale: Positive = Field(10.0, description="of the cosines of the contrast")
    looks: Count = Field(20, description="times that dev is looked at")
    chunk_s: Positive = Field(3.5, description="what is taken apart at a time in a recording, for the memory")
    memory_thresholds: Several[float] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        description="cosine to a known voice from which on it is that one; dev chooses",
    )
    checkpoint_steps: WholeNumber = Field(200, description="steps between checkpoints; 0: at looks only")

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.inputs, self.teacher, self.heard_in)))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The features that are taken apart, side by side."""
        return tuple(self.feature.split("+"))

    @property
    def heard_in(self) -> str:
        """The feature whose frames of a mixture are the windows."""
        return self.windows_of or self.teacher

    @model_validator(mode="after")
    def _sound(self) -> UnmixConfig:
        if self.protocol == "reference":
            raise ValueError(
                "the published procedure chooses slots by the clean target, so there is no reference protocol of it: "
                "leave it out"
            )
        if self.windows and self.heard_in in self.inputs[:-1]:
            raise ValueError(
                f"windows=true: the teacher, or windows_of, must stand last in feature, found {self.feature!r} with "
                f"{self.heard_in!r}"
            )
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, found {self.width} and {self.heads}")
        return self
