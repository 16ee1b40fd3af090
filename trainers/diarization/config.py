"""Settings of the diarization heads: adapter, fusion and unfreeze."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from featstore.settings import Count, NotNegative, Positive, Several, WholeNumber, settings
from trainers.config import Features, FitConfig, OneInputConfig

Share = Annotated[float, Field(ge=0, lt=1)]
_Channels = Annotated[int, Field(ge=1, le=6)]
_Threshold = Annotated[float, Field(gt=0, lt=1)]


def _odd(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(value < 1 or value % 2 == 0 for value in values):
        raise ValueError("one or more odd frame counts")
    return values


def _odd_or_none(value: int) -> int:
    if value < 0 or (value and value % 2 == 0):
        raise ValueError("an odd frame count, or 0")
    return value


_Medians = Annotated[Several[int], AfterValidator(_odd)]


@settings
class SessionsConfig(FitConfig):
    """What is trained and measured on sessions, in which several speak."""

    dev_fraction: Share = Field(0.05, description="of the training recordings, held out where there is no split=dev")


@settings
class DiarizationConfig(SessionsConfig, OneInputConfig):
    """What all diarization heads are trained with."""

    precision: Literal["float32", "bf16"] = Field("float32", description="bf16: autocast")
    tensorboard: bool = Field(False, description="write RUN/tensorboard too; needs the package tensorboard")
    # optimisation
    epochs: Count = Field(40, description="passes over the crops")
    patience: Count = Field(10, description="epochs without a better dev loss, after which training ends")
    batch_size: Count = Field(4, description="crops a step")
    lr: Positive = Field(1e-4, description="learning rate of AdamW at the end of the warm-up")
    weight_decay: NotNegative = Field(1e-3, description="of AdamW")
    warmup_steps: WholeNumber = Field(2500, description="linear warm-up; then the rate falls as 1/sqrt(step)")
    grad_clip: Positive = Field(1.0, description="norm that gradients are clipped to")
    sort_weight: NotNegative = Field(0.5, description="of the sort loss in the hybrid loss")
    pil_weight: NotNegative = Field(0.5, description="of the permutation-invariant loss in the hybrid loss")
    ema: Share = Field(
        0.0, description="decay, a step, of the moving average of weights that is measured and kept; 0: the weights"
    )
    checkpoint_steps: WholeNumber = Field(
        0, description="steps between checkpoints inside an epoch; 0: at its end only"
    )
    # the adapter
    width: Count = Field(384, description="of the Transformer; even, a multiple of heads")
    layers: Count = Field(4, description="of the Transformer")
    heads: Count = Field(6, description="of its attention")
    ffn: Count = Field(1536, description="width of its feed-forward layers")
    dropout: Share = Field(0.1, description="in the Transformer")
    channel_dropout: bool = Field(
        False, description="dropout takes whole channels of a crop, and attention none: a step costs far less"
    )
    input_dropout: Share = Field(0.0, description="share of the input's dimensions dropped over a whole crop")
    conv_frames: Annotated[int, AfterValidator(_odd_or_none)] = Field(
        0, description="odd length of a depthwise convolution over time before the Transformer; 0: none"
    )
    token_frames: Count = Field(1, description="frames averaged into one token of the Transformer")
    # data
    crop_s: Positive = Field(90.0, description="length of a training example and of a window that is scored")
    speakers: _Channels = Field(4, description="output channels; their permutations are enumerated")
    crops_per_epoch: WholeNumber = Field(0, description="0: as many as make the training audio pass by once")
    sampling: dict[str, NotNegative] = Field(
        default_factory=dict, description="pattern on ids:weight; ami*:3 draws those sessions three times as often"
    )
    # decoding
    thresholds: Several[_Threshold] = Field(
        (0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60), description="on activities, that decoding is tuned over"
    )
    medians: _Medians = Field((1, 5, 11), description="odd lengths of a filter in frames, that decoding is tuned over")

    @property
    def cache(self) -> bool:
        """Whether the head is told of what came before its window."""
        return False

    @model_validator(mode="after")
    def _together(self) -> DiarizationConfig:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width must be even and a multiple of heads={self.heads}, found {self.width}")
        if not self.sort_weight + self.pil_weight > 0:
            raise ValueError("sort_weight and pil_weight are both 0: there is no loss left")
        return self


@settings
class FrozenConfig(DiarizationConfig):
    """What the heads on frozen features are trained with."""

    resident: Literal["auto", "yes", "no"] = Field(
        "auto", description="keep the training frames in device memory; auto: on CUDA, where they fill less than half"
    )
    cache_s: NotNegative = Field(
        0.0, description="earlier speech, by voice, that a window is heard with, so that channels are voices; 0: none"
    )
    chunk_frames: WholeNumber = Field(
        0, description="heard at once, with those before only, so that a step of a stream costs no more; 0: all frames"
    )
    left_frames: WholeNumber = Field(0, description="the most before a chunk that its frames hear")

    @property
    def cache(self) -> bool:
        return self.cache_s > 0

    @model_validator(mode="after")
    def _published(self) -> FrozenConfig:
        if self.cache and self.protocol == "reference":
            raise ValueError("cache_s: the published procedure hears windows alone; leave it out, or protocol=sound")
        if self.chunk_frames and not self.cache:
            raise ValueError("chunk_frames: what it hears is too short to know voices by; set cache_s too")
        for name in ("chunk_frames", "left_frames"):
            if getattr(self, name) % self.token_frames:
                raise ValueError(
                    f"{name} must be a multiple of token_frames={self.token_frames}, found {getattr(self, name)}"
                )
        return self


@settings
class AdapterConfig(FrozenConfig):
    """A small Transformer on frozen features."""

    kind: Literal["adapter"] = "adapter"


@settings
class FusionConfig(FrozenConfig):
    """The same on the features of two encoders, side by side."""

    kind: Literal["fusion"] = "fusion"
    feature: Features = "mimi+titanet"


@settings
class UnfreezeConfig(DiarizationConfig):
    """The adapter, and Mimi's top layers trained along."""

    kind: Literal["unfreeze"] = "unfreeze"
    mimi_lr: Positive = Field(1e-5, description="learning rate of Mimi's layers")
    mimi_grad_clip: Positive = Field(0.5, description="norm that their gradients are clipped to")
    mimi_top_layers: WholeNumber = Field(3, description="how many layers of Mimi's Transformer are trained")
    # Cached frames were computed with all that came before.
    mimi_context_s: NotNegative = Field(10.0, description="audio before a crop that Mimi hears too")
    mimi_weights: str = Field("", description="a safetensors path, hf:REPO or random:SEED; empty: what the store says")
