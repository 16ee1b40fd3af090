"""NeMo's TitaNet: its configurations, how it is built and how weights get into it. The only file that imports nemo."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from featstore.extractors import sources
from featstore.extractors import weights as weights_of
from featstore.extractors.titanet_windows import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from nemo.collections.asr.models import EncDecSpeakerLabelModel


def _config(filters: int, repeat: int, out_filters: int, attention_channels: int, num_classes: int) -> dict[str, Any]:
    """NeMo's ``titanet-large.yaml`` (examples/speaker_tasks/recognition/conf) with its sizes as arguments."""

    def block(filters: int, kernel: int, repeat: int, residual: bool) -> dict[str, Any]:
        return {
            "filters": filters,
            "repeat": repeat,
            "kernel": [kernel],
            "stride": [1],
            "dilation": [1],
            "dropout": 0.1 if residual else 0.0,
            "residual": residual,
            "separable": True,
            "se": True,
            "se_context_size": -1,
        }

    return {
        "sample_rate": 16000,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "normalize": "per_feature",
            "window_size": 0.025,
            "sample_rate": 16000,
            "window_stride": 0.01,
            "window": "hann",
            "features": 80,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 0.00001,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            "feat_in": 80,
            "activation": "relu",
            "conv_mask": True,
            "jasper": [
                block(filters, 3, 1, residual=False),
                *(block(filters, kernel, repeat, residual=True) for kernel in (7, 11, 15)),
                block(out_filters, 1, 1, residual=False),
            ],
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.SpeakerDecoder",
            "feat_in": out_filters,
            "num_classes": num_classes,
            "pool_mode": "attention",
            "emb_sizes": 192,
            "attention_channels": attention_channels,
            "angular": True,
        },
    }


#: The published TitaNet-Large: 23.5 M parameters with its head for 7205 training speakers.
TITANET_FULL = _config(filters=1024, repeat=3, out_filters=3072, attention_channels=128, num_classes=7205)

#: The same architecture made small; embeddings are still 192-d.
TITANET_NANO = _config(filters=128, repeat=2, out_filters=384, attention_channels=64, num_classes=2)


#: Logging has one switch for all threads: two that turned it at once could leave it off for good.
_SWITCH = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep NeMo's banners and logs off the user's screen while it is imported or builds a model."""
    with _SWITCH:
        previous = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(previous)


def build_titanet(config: Mapping[str, Any] | None = None) -> EncDecSpeakerLabelModel:
    """NeMo's EncDecSpeakerLabelModel in eval mode with its default initialisation (importing NeMo takes ~20 s).

    Parameters
    ----------
    config : what `TITANET_FULL` and `TITANET_NANO` are examples of; None means `TITANET_FULL`. A ``loss``
        may be added for training.
    """
    with _quiet():
        from nemo.collections.asr.models import EncDecSpeakerLabelModel
        from omegaconf import OmegaConf

        model = EncDecSpeakerLabelModel(OmegaConf.create(copy.deepcopy(dict(config or TITANET_FULL))))
    return model.eval()


def load_titanet(source: sources.Source) -> tuple[EncDecSpeakerLabelModel, str]:
    """NeMo's model with the weights of `source`, and their SHA-256.

    Raises
    ------
    WeightsError : the file is damaged, unsafe, or of another architecture.
    """
    if source.path is None:
        model = build_titanet(TITANET_FULL if source.full else TITANET_NANO)
        weights_of.randomise(model, source.seed)
        return model, weights_of.state_sha256(model.state_dict())

    own: dict[str, Any] | None
    if source.path.suffix == ".nemo":
        from featstore.extractors.nemo_archive import read_nemo

        state, own = read_nemo(source.path)
    else:
        state, own = weights_of.read_safetensors(source.path)
    config = _safe_config(own or TITANET_FULL, source.path.name)
    try:
        with torch.device("meta"):
            outline = build_titanet(config)
        # The outline takes no memory: a file that does not fit its own configuration is found out here.
        weights_of.load(outline, state, source, optional=("preprocessor.", "decoder.final."))
        model = build_titanet(config)
    except sources.WeightsError:
        raise
    except Exception as error:  # Hydra and NeMo wrap whatever a wrong configuration leads to.
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise sources.WeightsError(f"{source.path.name}: its configuration does not make a TitaNet: {first}") from None
    model.load_state_dict({k: v for k, v in outline.state_dict().items() if not v.is_meta}, strict=False)
    return model, sources.file_sha256(source.path)


def _safe_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Only the parts that make the network, and only the three classes a TitaNet is made of."""
    kinds = {
        "preprocessor": "AudioToMelSpectrogramPreprocessor",
        "encoder": "ConvASREncoder",
        "decoder": "SpeakerDecoder",
    }
    safe: dict[str, Any] = {"sample_rate": SAMPLE_RATE_HZ}
    for section, kind in kinds.items():
        values = config.get(section)
        if not isinstance(values, Mapping):
            values = {}
        found = str(values.get("_target_", "")).rpartition(".")[2]
        if found != kind:
            raise sources.WeightsError(f"{name}: {section}: expected a TitaNet's {kind}, found {found or 'nothing'}")
        safe[section] = {**values, "_target_": f"nemo.collections.asr.modules.{kind}"}
    # The loss itself is not needed, but an angular one leaves the head without bias.
    loss = config.get("loss")
    if isinstance(loss, Mapping) and "angular" in str(loss.get("_target_", "")).lower():
        safe["decoder"]["angular"] = True
    return safe
