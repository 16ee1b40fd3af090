"""Mimi frame by frame: its streaming state kept from call to call, and as arrays, so that it can be saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.extractors.mimi import FRAME_SAMPLES, MimiExtractor, _filled, _latent, _widen_caches, uncompiled


class MimiStream:
    """A wave in pieces of up to `piece_frames` frames → the frames that `MimiExtractor.extract` makes of it in one go.

    moshi's ring of keys is widened as there; so the difference is that of float32 sums of other lengths.

    Parameters
    ----------
    widened : False leaves the ring as moshi has it, which is what a running Moshi hears.
    """

    def __init__(self, extractor: MimiExtractor, piece_frames: int, widened: bool = True) -> None:
        shared = {id(t): t for t in (*extractor._model.parameters(), *extractor._model.buffers())}
        self._model = copy.deepcopy(extractor._model, shared)
        self.piece_frames = piece_frames
        self._model.streaming_forever(1)
        if widened:
            _widen_caches(self._model, piece_frames)

    def feed(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(samples,)`` → ``(frames, 512)``; only the last piece of a wave may end inside of a frame."""
        from moshi.utils.compile import no_cuda_graph

        assert 0 < len(wave) <= self.piece_frames * FRAME_SAMPLES
        with torch.inference_mode(), uncompiled(), no_cuda_graph():
            frames: NDArray[np.float32] = _latent(self._model, _filled(wave)[None])[0]
        return frames

    def reset(self) -> None:
        """As new."""
        for name, (_, value) in self._named().items():
            with torch.inference_mode():
                value.fill_(name.endswith(("exec_mask", "first")))
        for state in self._model.get_streaming_state().values():
            if hasattr(state, "offset_cpu"):
                state.offset_cpu = 0

    def state(self) -> dict[str, NDArray[Any]]:
        """What `restore` takes."""
        arrays = {name: value.cpu().numpy().copy() for name, (_, value) in self._named().items()}
        for name, state in self._model.get_streaming_state().items():
            if hasattr(state, "offset_cpu"):
                arrays[f"{name}:offset_cpu"] = np.array(state.offset_cpu)
        return arrays

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Go on from a `state`.

        Raises
        ------
        ValueError : it is of another Mimi or of pieces of another length.
        """
        states = self._model.get_streaming_state()
        own = self.state()
        if own.keys() != arrays.keys() or any(own[name].shape != arrays[name].shape for name in own):
            raise ValueError("the state is of another Mimi, or of steps of another length")
        with torch.inference_mode():
            for name, (_, value) in self._named().items():
                value.copy_(torch.from_numpy(arrays[name]))
        for name, state in states.items():
            if hasattr(state, "offset_cpu"):
                state.offset_cpu = int(arrays[f"{name}:offset_cpu"])

    def _named(self) -> dict[str, tuple[Any, torch.Tensor]]:
        """All tensors of the streaming state, each with what holds it."""
        return {name: (holder, value) for name, holder, value in self._tensors()}

    def _tensors(self) -> Iterator[tuple[str, Any, torch.Tensor]]:
        for name, state in self._model.get_streaming_state().items():
            holders = [state, kv] if (kv := getattr(state, "kv_cache", None)) is not None else [state]
            for holder in holders:
                for key, value in vars(holder).items():
                    if isinstance(value, torch.Tensor):
                        yield f"{name}:{key}", holder, value
