"""FitConfig: the one dataclass that holds every default of training; TOML files and ``--set key=value`` override it."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = ("probe", "adapter", "fusion", "unfreeze")
PROTOCOLS = ("sound", "reference")
EXPERIMENTS = ("", "1.5", "poc", "2", "2.5", "3")

# Where a kind's published recipe differs from the adapter's, which is what the dataclass itself says.
_RECIPES: dict[str, dict[str, Any]] = {
    "probe": {"lr": 1e-3, "epochs": 100, "batch_size": 256},
    "adapter": {},
    "fusion": {"feature": "mimi+titanet"},
    "unfreeze": {"grad_clip": 1.0},
}


class ConfigError(ValueError):
    """A key that does not exist, or a value of the wrong type or outside its range."""


@dataclass(frozen=True)
class FitConfig:
    """Everything that decides a run. The defaults are the published recipe (adapter); see `make` for other kinds.

    Attributes
    ----------
    kind : "probe", "adapter", "fusion" or "unfreeze".
    protocol : "sound", or "reference": as published, its flaws included, for comparison.
    experiment : row of the report that the run is for; "" is the one of its kind (adapter: 2), else e.g. "poc".
    feature : of the store; several are joined with ``+`` and concatenated.
    trials : the trial list of the probe.
    piece_s : probe: train also on the means of pieces this long; 0: on whole utterances only, as published.
    device : "auto", "cpu", "cuda", "cuda:N" or "mps".
    precision : "float32", or "bf16" for autocast.
    resident : keep the training frames in device memory: "auto" (CUDA, where they fill less than half), "yes", "no".
    tensorboard : write RUN/tensorboard beside history.csv (needs the package tensorboard).
    lr, weight_decay, warmup_steps : AdamW; linear warm-up, then inverse square root of the step.
    mimi_lr, mimi_grad_clip, mimi_top_layers : of `unfreeze`: its trainable top layers.
    mimi_context_s : audio before a crop that Mimi hears too, since cached frames were computed with all before.
    mimi_weights : a safetensors path, ``hf:REPO`` or ``random:SEED``; "" takes what the store's `mimi` says.
    sort_weight, pil_weight : of the hybrid loss.
    crop_s, speakers : of a training example; `speakers` is the number of output channels.
    crops_per_epoch : 0 means as many as make the training audio pass by once.
    sampling : pattern on utterance ids → weight; ``{"ami*": 3.0}`` draws those sessions three times as often.
    dev_fraction : of the training recordings, held out where no utterance has ``split=dev``.
    thresholds, medians : what decoding is tuned over (medians are filter lengths in frames).
    checkpoint_steps : write ``last.safetensors`` this often inside an epoch too (0: at its end only).
    """

    kind: str = "adapter"
    protocol: str = "sound"
    experiment: str = ""
    feature: str = "mimi"
    seed: int = 0
    device: str = "auto"
    precision: str = "float32"
    resident: str = "auto"
    tensorboard: bool = False
    # optimisation
    epochs: int = 40
    patience: int = 10
    batch_size: int = 4
    lr: float = 1e-4
    weight_decay: float = 1e-3
    warmup_steps: int = 2500
    grad_clip: float = 1.0
    sort_weight: float = 0.5
    pil_weight: float = 0.5
    checkpoint_steps: int = 0
    # the adapter
    width: int = 384
    layers: int = 4
    heads: int = 6
    ffn: int = 1536
    dropout: float = 0.1
    # data
    crop_s: float = 90.0
    speakers: int = 4
    crops_per_epoch: int = 0
    sampling: dict[str, float] = field(default_factory=dict)
    dev_fraction: float = 0.05
    # decoding
    thresholds: tuple[float, ...] = (0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60)
    medians: tuple[int, ...] = (1, 5, 11)
    # probe
    trials: str = ""
    piece_s: float = 0.0
    # unfreeze
    mimi_lr: float = 1e-5
    mimi_grad_clip: float = 0.5
    mimi_top_layers: int = 3
    mimi_context_s: float = 10.0
    mimi_weights: str = ""

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(FitConfig).items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), kind))
        _one_of("kind", self.kind, KINDS)
        _one_of("protocol", self.protocol, PROTOCOLS)
        _one_of("experiment", self.experiment, EXPERIMENTS)
        _one_of("precision", self.precision, ("float32", "bf16"))
        _one_of("resident", self.resident, ("auto", "yes", "no"))
        positive = "epochs patience batch_size lr grad_clip width layers heads ffn crop_s speakers"
        for name in (positive + " mimi_lr mimi_grad_clip").split():
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be more than 0, found {getattr(self, name)}")
        not_negative = "weight_decay warmup_steps sort_weight pil_weight checkpoint_steps crops_per_epoch piece_s"
        for name in (not_negative + " mimi_top_layers mimi_context_s").split():
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more, found {getattr(self, name)}")
        for name in ("dropout", "dev_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, found {getattr(self, name)}")
        if not self.features or len(set(self.features)) < len(self.features):
            raise ConfigError(f"feature must be different names joined with '+', found {self.feature!r}")
        if self.width % self.heads or self.width % 2:
            raise ConfigError(f"width must be even and a multiple of heads={self.heads}, found {self.width}")
        if self.speakers > 6:  # permutations are enumerated
            raise ConfigError(f"speakers must be 1 to 6, found {self.speakers}")
        if not self.sort_weight + self.pil_weight > 0:
            raise ConfigError("sort_weight and pil_weight are both 0: there is no loss left")
        if not self.thresholds or not all(0 < t < 1 for t in self.thresholds):
            raise ConfigError(f"thresholds must be one or more numbers between 0 and 1, found {self.thresholds}")
        if not self.medians or not all(m > 0 and m % 2 for m in self.medians):
            raise ConfigError(f"medians must be one or more odd frame counts, found {self.medians}")
        if any(w < 0 for w in self.sampling.values()):
            raise ConfigError(f"sampling weights must be 0 or more, found {self.sampling}")

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that are concatenated, in order."""
        return tuple(name for name in self.feature.split("+") if name)

    @classmethod
    def make(
        cls, kind: str, *, file: str | Path | None = None, settings: Sequence[str] = (), **overrides: Any
    ) -> FitConfig:
        """The recipe of `kind`, then a TOML `file`, then ``key=value`` texts, then keyword `overrides` (None: unset).

        Raises
        ------
        ConfigError : an unknown key (names near matches), a value of the wrong type, a file that is not TOML.
        OSError : the file cannot be read.
        """
        _one_of("kind", kind, KINDS)
        values = dict(_RECIPES[kind])
        if kind == "fusion" or kind == "unfreeze":
            values.setdefault("feature", "mimi")
        if file is not None:
            values.update(_from_toml(Path(file)))
        for text in settings:
            key, equals, value = text.partition("=")
            if not equals:
                raise ConfigError(f"--set {text!r}: expected key=value")
            values[_known(key.strip())] = _parsed(key.strip(), value.strip())
        values.update({_known(key): value for key, value in overrides.items() if value is not None})
        if values.pop("kind", kind) != kind:
            raise ConfigError(f"the configuration is for another kind of run than {kind!r}")
        return cls(kind=kind, **values)

    def to_json(self) -> dict[str, Any]:
        """A dict that `json` can write; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FitConfig:
        """Read what `to_json` wrote."""
        return cls(**{_known(key): value for key, value in data.items()})


def _known(key: str) -> str:
    names = [f.name for f in dataclasses.fields(FitConfig)]
    if key not in names:
        near = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
        raise ConfigError(f"no setting is called {key!r}; {hint}")
    return key


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    return {_known(key): value for key, value in data.items()}


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(filter(None, choices))}, found {value!r}")


def _parsed(key: str, text: str) -> Any:
    """The value that `text` of ``--set`` stands for, by the type of the field."""
    kind = typing.get_type_hints(FitConfig)[_known(key)]
    try:
        if kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        if kind in (int, float):
            return kind(text)
        if typing.get_origin(kind) is tuple:
            return tuple(typing.get_args(kind)[0](part) for part in text.split(",") if part.strip())
        if typing.get_origin(kind) is dict:
            pairs = [part.rpartition(":") for part in text.split(",") if part.strip()]
            return {pattern.strip(): float(weight) for pattern, _, weight in pairs}
    except ValueError:
        raise ConfigError(f"{key} must be {_spoken(kind)}, found {text!r}") from None
    return text


def _checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as the field's type, or a ConfigError; ints pass as floats, lists as tuples."""
    if kind is float and type(value) is int:
        return float(value)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_checked(name, item, typing.get_args(kind)[0]) for item in value)
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        return {key: _checked(f"{name}.{key}", item, float) for key, item in value.items()}
    if type(value) is not kind or value != value or value in (float("inf"), float("-inf")):
        raise ConfigError(f"{name} must be {_spoken(kind)}, found {value!r}")
    return value


def _spoken(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        item = _spoken(typing.get_args(kind)[0]).removeprefix("a ").removeprefix("whole ")
        return f"{item}s separated by commas"
    if typing.get_origin(kind) is dict:
        return "pattern:weight pairs separated by commas"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}.get(kind, str(kind))
