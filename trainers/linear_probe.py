"""LinearProbe: who speaks, by one linear layer; a scikit-learn estimator."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn


class LinearProbe(ClassifierMixin, TransformerMixin, BaseEstimator):
    """One linear layer, dim → speakers, trained with cross-entropy: how linearly separable are the speakers?

    A scikit-learn estimator: it clones, goes into pipelines and searches. `transform` projects with the layer's weights
    and without its bias, the space whose cosine is the published score.

    Parameters
    ----------
    lr, epochs, batch_size : of Adam; the defaults are the published ones.
    device : a torch device.
    random_state : seed of the initial weights and of the order of examples.

    Attributes
    ----------
    classes_ : (N,) labels.
    coef_, intercept_ : (N, dim) and (N,) float32.
    history_ : one dict an epoch: epoch, loss, accuracy (of the examples as they were met), seconds.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        epochs: int = 100,
        batch_size: int = 256,
        device: str = "cpu",
        random_state: int | None = 0,
    ) -> None:
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def fit(
        self, X: ArrayLike, y: ArrayLike, *, on_epoch: Callable[[dict[str, Any]], None] | None = None
    ) -> LinearProbe:
        """Train on vectors `X` (vectors, dim) and labels `y` (vectors,); `on_epoch` is told each row of the history.

        Raises
        ------
        ValueError : fewer than two classes, or input that scikit-learn refuses (NaN, no rows, …).
        """
        x, y = validate_data(self, X, y, dtype=np.float32)
        with warnings.catch_warnings():  # many speakers of an utterance each are classes all the same
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
            check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"LinearProbe needs at least 2 classes, found 1 class: {self.classes_[0]!r}")
        seed = int(check_random_state(self.random_state).randint(2**31))
        rng = torch.Generator().manual_seed(seed)

        vectors = torch.as_tensor(x, device=self.device)
        labels = torch.as_tensor(targets, device=self.device)
        # nn.Linear's own initialisation, drawn from our generator.
        bound = 1 / math.sqrt(x.shape[1])
        weight = (torch.rand(len(self.classes_), x.shape[1], generator=rng) * 2 - 1) * bound
        bias = (torch.rand(len(self.classes_), generator=rng) * 2 - 1) * bound
        weight = weight.to(self.device).requires_grad_()
        bias = bias.to(self.device).requires_grad_()
        optimizer = torch.optim.Adam([weight, bias], lr=self.lr, fused=True)

        self.history_: list[dict[str, Any]] = []
        began = time.perf_counter()
        for epoch in range(1, self.epochs + 1):
            order = torch.randperm(len(vectors), generator=rng).to(self.device)
            loss_sum = torch.zeros((), device=self.device)
            correct = torch.zeros((), device=self.device, dtype=torch.int64)
            for rows in order.split(self.batch_size):
                logits = nn.functional.linear(vectors[rows], weight, bias)
                loss = nn.functional.cross_entropy(logits, labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss_sum += loss.detach() * len(rows)
                correct += (logits.detach().argmax(1) == labels[rows]).sum()
            self.history_.append(
                {
                    "epoch": epoch,
                    "loss": float(loss_sum) / len(vectors),
                    "accuracy": int(correct) / len(vectors),
                    "seconds": round(time.perf_counter() - began, 3),
                }
            )
            if on_epoch is not None:
                on_epoch(self.history_[-1])
        self.coef_ = weight.detach().cpu().numpy()
        self.intercept_ = bias.detach().cpu().numpy()
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float32]:
        """Logits (vectors, N); for two classes their difference (vectors,), as scikit-learn wants it."""
        check_is_fitted(self)
        logits = validate_data(self, X, dtype=np.float32, reset=False) @ self.coef_.T + self.intercept_
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most likely label of each vector (vectors,)."""
        scores = self.decision_function(X)
        return self.classes_[scores.argmax(1) if scores.ndim == 2 else (scores > 0).astype(int)]

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """``X @ W.T`` without the bias, (vectors, N)."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float32, reset=False) @ self.coef_.T
