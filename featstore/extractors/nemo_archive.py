"""Read a ``.nemo`` file without trusting it: no member is unpacked to disk, nothing is unpickled but tensors."""

from __future__ import annotations

import io
import tarfile
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251
from typing import Any

import torch

from featstore.extractors.sources import WeightsError
from featstore.extractors.weights import check_config

_CONFIG, _WEIGHTS = "model_config.yaml", "model_weights.ckpt"
_MAX_BYTES = {_CONFIG: 16 << 20, _WEIGHTS: 4 << 30}
_MAX_MEMBERS = 1000
#: A class or function named in the configuration is imported and called: only NeMo's own may be.
_TARGET_KEYS = ("_target_", "target", "cls")
_ALLOWED = "nemo.collections.asr."


def read_nemo(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and configuration of a ``.nemo`` archive (a tar, gzipped or not).

    Returns
    -------
    state : name → tensor, on the CPU.
    config : the sections ``preprocessor``, ``encoder``, ``decoder`` and ``loss`` (if any), interpolations resolved.

    Raises
    ------
    WeightsError : no such archive, a part is missing or too large, the checkpoint holds anything but tensors,
        or the configuration names code outside ``nemo.collections.asr``.
    """
    try:
        parts = _read_members(path)
        config = _parse_config(parts[_CONFIG])
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError, zlib.error) as error:
        first = str(error).partition("\n")[0].rstrip(":")
        raise WeightsError(f"{path.name} is not a NeMo archive we can read: {first}") from None
    return _tensors(parts[_WEIGHTS], path.name), config


def _read_members(path: Path) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    total = 0
    with tarfile.open(path, mode="r:*") as archive:
        for count, member in enumerate(archive):
            total += member.size
            if count >= _MAX_MEMBERS or total > sum(_MAX_BYTES.values()):
                raise ValueError(f"more than {_MAX_MEMBERS} members or {sum(_MAX_BYTES.values())} bytes")
            name = member.name.removeprefix("./")
            if name not in _MAX_BYTES or not member.isreg():
                continue
            if member.size > _MAX_BYTES[name]:
                raise ValueError(f"{name} has {member.size} bytes, expected at most {_MAX_BYTES[name]}")
            if name in parts:
                raise ValueError(f"{name} is in it twice")
            file = archive.extractfile(member)
            assert file is not None  # the member is a file
            parts[name] = file.read()
    for name in _MAX_BYTES:
        if name not in parts:
            raise ValueError(f"expected a member {name}, found none")
    return parts


def _parse_config(text: bytes) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{_CONFIG} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict) or not {"preprocessor", "encoder", "decoder"} <= config.keys():
        raise ValueError(f"{_CONFIG}: expected sections preprocessor, encoder and decoder")
    # Lists of training data and labels are long and of no use here.
    config = {key: value for key, value in config.items() if not str(key).endswith("_ds") and key != "labels"}
    check_config(config)
    _check_targets(config)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{_CONFIG}: {str(error).splitlines()[0]}") from None
    assert isinstance(resolved, dict)  # as it was before
    # Once more: an interpolation may have put a value where none was seen.
    check_config(resolved)
    _check_targets(resolved)
    return {key: resolved[key] for key in ("preprocessor", "encoder", "decoder", "loss") if key in resolved}


def _check_targets(node: Any) -> None:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in _TARGET_KEYS and not str(value).startswith(_ALLOWED):
                raise ValueError(f"refused: its configuration calls {value!r}, expected only {_ALLOWED}*")
            _check_targets(value)
    elif isinstance(node, list):
        for value in node:
            _check_targets(value)
    elif isinstance(node, str) and "${" in node and ":" in node:
        raise ValueError(f"refused: its configuration calls a resolver: {node!r}")


def _tensors(data: bytes, name: str) -> dict[str, torch.Tensor]:
    # For good, since `catch_warnings` swaps the filters of all threads; what it is about is refused or loaded below.
    warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # noqa: TID251
    except UnpicklingError:
        raise WeightsError(
            f"{name} refused: its checkpoint holds more than tensors (a pickle that could run code). Get the file "
            "from its publisher, or pass safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{name}: {_WEIGHTS} is damaged: {str(error).splitlines()[0]}") from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"{name}: expected tensors by name in {_WEIGHTS}, found something else")
    return dict(state)
