"""The writing side of a run's folder; what lies in it, and how others read it: `evaluation.runs`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from evaluation import runs
from evaluation.runs import CONFIG, FACTS, HISTORY
from evaluation.runs import RunError as RunError
from featstore import FeatureSpec, Store
from featstore.files import write_atomically
from featstore.store.labels import label_digests, other_labels
from trainers.config import ConfigError, FitConfig

# What may change between a run and its resumption without making it another run.
_MAY_DIFFER = ("device", "resident", "checkpoint_steps", "epochs", "tensorboard", "rated", "sets", "test_mixtures")

C = TypeVar("C", bound=FitConfig)


class Run(Generic[C]):
    """A run's folder. Make one with `create`, go on with one through `resume`, read one with `open`."""

    def __init__(
        self,
        path: Path,
        config: C,
        features: Mapping[str, FeatureSpec],
        store: str,
        labels: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.config = config
        #: Path of the store it was trained on, as it was given.
        self.store = store
        #: The specs of the features it was trained on, by name.
        self.features = dict(features)
        #: Of each split it was trained on, how many utterances and a digest of their labels; None in runs before 0.2.
        self.labels = labels

    @classmethod
    def create(cls, path: str | Path, config: C, store: Store, *, resume: bool = False) -> Run[C]:
        """A new run on `store` (nothing is written before `begin`); with `resume`, the one there, if it is the same.

        Raises
        ------
        RunError : the folder exists (without `resume`), or holds a run with other settings or features.
        KeyError : the store lacks a feature.
        """
        path = Path(path)
        for name in config.features:
            store.index(name)  # says what is there when it is not
            if store.features[name].whole and config.kind != "proxy":
                raise ConfigError(
                    f"feature {name!r} holds codes, names of vectors and not vectors: fit proxy reads them, {config.kind} does not"
                )
        features = {name: store.features[name] for name in config.features}
        labels = label_digests(store)
        if path.exists() and any(path.iterdir()):
            if not resume:
                raise RunError(f"{path}: exists already; choose another --out, or add --resume to go on with it")
            there = Run.open(path)
            there.check(store)
            if others := other_labels(there.labels, labels):
                raise RunError(
                    f"{path}: cannot resume: labels in {store.address} are others than it began with ({others}); train a new run"
                )
            old, new = there.config.to_json(), config.to_json()
            changed = [key for key in old if old[key] != new.get(key) and key not in _MAY_DIFFER]
            if changed:
                told = ", ".join(f"{key} (was {old[key]!r}, now {new.get(key)!r})" for key in changed)
                raise RunError(f"{path}: cannot resume with other settings: {told}")
            return cls(there.path, config, there.features, there.store, there.labels)
        return cls(path, config, features, store.address, labels)

    def begin(self) -> None:
        """Make the folder and write config.json, once the data have passed their checks."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json(
            CONFIG,
            {
                "whowhen": metadata.version("whowhen"),
                "kind": self.config.kind,
                "protocol": self.config.protocol,
                "config": self.config.to_json(),
                "store": self.store,
                "features": {
                    name: {"fingerprint": spec.fingerprint, "warning": spec.warning, "spec": spec.to_json()}
                    for name, spec in self.features.items()
                },
                "labels": self.labels,
            },
        )

    @staticmethod
    def open(path: str | Path) -> Run[FitConfig]:
        """Read a run's folder.

        Raises
        ------
        RunError : it is not one, or its config is damaged.
        """
        found = runs.open(path)
        try:
            config = FitConfig.from_json(found.config["config"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{found.path / CONFIG}: damaged or of another version: {error}") from None
        return Run(found.path, config, found.features, found.config["store"], found.config.get("labels"))

    def check(self, store: Store) -> None:
        """Refuse a store whose features are not the ones this run was trained on.

        Raises
        ------
        RunError
        """
        for name, spec in self.features.items():
            found = store.features.get(name)
            if found is None or found.fingerprint != spec.fingerprint:
                there = f"has {found.fingerprint}" if found else f"has no {name!r}"
                raise RunError(
                    f"{self.path}: was trained on feature {name!r} with fingerprint {spec.fingerprint}; "
                    f"{store.address} {there}. Use the store it was trained on, or train a new run"
                )

    # ---- files

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        write_atomically(self.path / name, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        return json.loads((self.path / name).read_bytes())

    def write_tensors(self, name: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Write a safetensors file; `facts` (JSON) go into its header, so both change in one rename."""
        flat = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_atomically(self.path / name, save(flat, metadata={FACTS: json.dumps(facts)}))

    def read_tensors(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Read what `write_tensors` wrote.

        Raises
        ------
        RunError : missing or damaged.
        """
        path = self.path / name
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[FACTS])
                return {key: file.get_tensor(key) for key in file.keys()}, facts
        except FileNotFoundError:
            raise RunError(f"{path}: missing; the run has not got that far") from None
        except (SafetensorError, KeyError, ValueError) as error:
            raise RunError(f"{path}: damaged: {error}") from None

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write history.csv whole: a resumed run replaces the rows of the epochs that it trains again."""
        lines: list[list[Any]] = [list(rows[0])] if rows else []
        lines += [list(row.values()) for row in rows]
        text = _Lines()
        csv.writer(text, lineterminator="\n").writerows(lines)
        write_atomically(self.path / HISTORY, "".join(text).encode())

    def write_table(self, name: str, table: Any) -> None:
        """Write a pyarrow table as Parquet."""
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_atomically(self.path / name, sink.getvalue().to_pybytes())

    @property
    def warnings(self) -> list[str]:
        """What must stand beside every number of this run; empty for properly trained weights."""
        return [spec.warning for spec in self.features.values() if spec.warning]


class _Lines(list):
    write = list.append


def output_spec(name: str, dim: int, sources: Iterable[FeatureSpec], *, model: str, **settings: Any) -> dict[str, Any]:
    """What a run's own feature takes over from those it is made of: keyword arguments of FeatureSpec.

    ``settings["weights"]`` stays that of the weakest source, so that its warning follows the numbers.
    """
    sources = list(sources)
    marked = [str(s.settings.get("weights", "")) for s in sources if s.warning]
    return {
        "name": name,
        "dim": dim,
        "sample_rate_hz": sources[0].sample_rate_hz,
        "model": f"{model} on {' + '.join(s.name for s in sources)}",
        "settings": {
            **settings,
            "weights": sorted(marked)[-1] if marked else "run",
            "sources": {s.name: s.fingerprint for s in sources},
        },
    }
