"""Settings of target speech extraction."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from featstore.settings import Count, NotNegative, Positive, WholeNumber, settings
from trainers.config import FitConfig

_Share = Annotated[float, Field(ge=0, le=1)]


@settings
class TseConfig(FitConfig):
    """One voice out of a mixture, by its embedding. The defaults are the smallest back-end that is honest, 1.3 M parameters."""

    kind: Literal["tse"] = "tse"
    feature: str = Field("titanet", description="the speaker encoder, of the store: mean over an utterance's frames")
    condition: Literal["embedding", "none"] = Field(
        "embedding", description="none: every voice at once, matched to the truth afterwards (PIT); the baseline"
    )
    architecture: Literal["tcn", "gru"] = Field("tcn", description="dilated convolutions, or a GRU of both directions")
    channels: Count = Field(128, description="of the network; the convolutions inside have twice as many")
    blocks: Count = Field(8, description="tcn: of a repeat, each with twice the dilation; gru: not used")
    repeats: Count = Field(2, description="tcn: times all blocks; gru: layers. The embedding enters before each")
    window: Count = Field(512, description="of the spectrum, samples at 16 kHz")
    hop: Count = Field(128, description="of the spectrum, samples; no more than half of the window")
    voices: Count = Field(3, description="condition=none: voices that come out")
    least_voices: Count = Field(
        1,
        description="mixtures of training and dev have so many voices or more; 2: a voice alone teaches to change nothing",
    )
    remixed: _Share = Field(
        0.0,
        description="of the training mixtures are put together anew each time, of any voices' tracks; 0: as they are stored",
    )
    enrolled: _Share = Field(
        0.5, description="of the examples take the embedding of another utterance, the others of the voice's own track"
    )
    jitter: NotNegative = Field(0.5, description="length of the noise on embeddings in training, drawn up to this")
    sets: str = Field(
        "", description="run of fit unmix whose sets the voices are chosen from when measured; empty: none"
    )
    steps: Count = Field(6000, description="of training")
    batch_size: Count = Field(8, description="voices a step")
    crop_s: Positive = Field(3.0, description="length of a crop")
    lr: Positive = Field(1e-3, description="highest learning rate of Adam; rises over the first tenth, then falls")
    looks: Count = Field(10, description="times that dev is looked at")
    dev_voices: Count = Field(100, description="of dev that are listened to at each look, and are the same throughout")
    test_mixtures: Count = Field(1000, description="of test that are listened to, the first by name")
    rated: WholeNumber = Field(
        100, description="test voices whose ESTOI, PESQ and DNSMOS are taken, where their packages are installed"
    )
    checkpoint_steps: WholeNumber = Field(200, description="steps between checkpoints; 0: at looks only")

    @property
    def features(self) -> tuple[str, ...]:
        return (self.feature,)

    @model_validator(mode="after")
    def _sound(self) -> TseConfig:
        if self.protocol == "reference":
            raise ValueError(
                "the published procedure chooses whom to extract by the clean voice itself; that choice is one of the "
                "rows of every result (oracle), so there is no reference protocol: leave it out"
            )
        if 2 * self.hop > self.window:
            raise ValueError(f"hop must be at most half of the window {self.window}, found {self.hop}")
        return self
