"""Weights into networks: read, check, hash, or draw from a seed; nothing is ever unpickled here."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from featstore.extractors.sources import Source, WeightsError

_MAX_CONFIG_BYTES = 1 << 20
# Bounds on a configuration somebody else wrote, before anything is allocated for it.
_MAX_CONFIG_NODES = 10_000
_MAX_CONFIG_INT = 1 << 20


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 over names, shapes, types and bytes of a state dict, in sorted order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """Tensors of a safetensors file, and the network's configuration from its metadata key "config" (JSON) if any.

    Raises
    ------
    WeightsError : not a safetensors file, or a configuration that is not a JSON object.
    """
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]  # its stub has no types
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path.name} is not a readable safetensors file: {error}") from None
    if "config" not in metadata:
        return state, None
    try:
        if len(metadata["config"]) > _MAX_CONFIG_BYTES:
            raise ValueError(f"longer than {_MAX_CONFIG_BYTES} bytes")
        config = json.loads(metadata["config"])
        if not isinstance(config, dict):
            raise ValueError(f"found {type(config).__name__}")
        check_config(config)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path.name}: its metadata key 'config' must be a network configuration: {error}") from None
    return state, config


def check_config(config: Any) -> None:
    """Refuse a configuration too large to be a network's, counting shared parts as often as they are used.

    Raises
    ------
    ValueError : more than 10,000 values, nested deeper than 32, or an integer above 2**20.
    """
    todo, seen = [(config, 0)], 0
    while todo:
        node, depth = todo.pop()
        seen += 1
        if seen > _MAX_CONFIG_NODES or depth > 32:
            raise ValueError("too many values or too deeply nested")
        if isinstance(node, Mapping):
            todo += [(value, depth + 1) for value in node.values()]
        elif isinstance(node, (list, tuple)):
            todo += [(value, depth + 1) for value in node]
        elif isinstance(node, int) and abs(node) > _MAX_CONFIG_INT:
            raise ValueError(f"{node} is too large for a size")


def load(
    model: torch.nn.Module, state: Mapping[str, torch.Tensor], source: Source, optional: tuple[str, ...] = ()
) -> None:
    """Put `state` into `model` (built on the device "meta"), as float32. Tensors it has no place for are left out.

    Parameters
    ----------
    optional : beginnings of names that may be missing; they stay on "meta".

    Raises
    ------
    WeightsError : a tensor is missing, has another shape, or is not finite; says how many and names the first.
    """
    name = source.path.name if source.path is not None else source.label
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    total = len(model.state_dict())
    try:
        # strict=False still runs the modules' own renaming of old keys, and says what did not match.
        missing = model.load_state_dict(state, strict=False, assign=True).missing_keys
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line] or [str(error)]
        raise WeightsError(
            f"{name} does not fit the network ({len(lines)} tensors differ): {lines[0]} Expected weights of this "
            "architecture and size, or a safetensors file whose metadata holds its own under 'config'"
        ) from None
    missing = [key for key in missing if not key.startswith(optional or ("\0",))]
    if missing:
        raise WeightsError(
            f"{name}: {len(missing)} of {total} tensors are missing, the first is {missing[0]!r}; "
            f"found {len(state)} tensors. These are weights of another model"
        )
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not value.is_meta and not torch.isfinite(value).all():
            raise WeightsError(f"{name}: tensor {key!r} holds NaN or infinity; the file is damaged")


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fill `model` from `seed`: Kaiming-normal convolutions without bias, uniform ±1/sqrt(fan-in) linear layers.

    PyTorch's default leaves a convolutional network nearly linear, and its mean output hardly depends on the
    input. The order is that of the names, so the numbers do not depend on how a library builds its modules.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, module in sorted(model.named_modules()):
            if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
            elif isinstance(module, torch.nn.Linear):
                bound = 1.0 / math.sqrt(module.in_features)
                module.weight.uniform_(-bound, bound, generator=generator)
            else:
                continue
            if module.bias is not None:
                module.bias.zero_()
