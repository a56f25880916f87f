"""Inception Score: are the images of one class each, and all classes there?"""

from __future__ import annotations

import torch
from torch import Tensor

from ditpress.errors import InputError

SPLITS = 10
SPLIT_SIZE = 500  # a split needs enough samples to show all classes


def inception_score(logits: Tensor) -> float:
    """Mean over splits of exp(mean KL(p(y|x) ‖ p(y))) (Salimans et al. 2016, §4), in float64.

    :func:`splits` of the samples in their order; with another order the last digits differ.

    Args:
        logits: [n, K] of a classifier.

    Raises:
        InputError: fewer than two classes or samples.
    """
    if logits.ndim != 2 or min(logits.shape) < 2:
        raise InputError(
            f"Inception Score: logits {tuple(logits.shape)}; expected 2 or more samples of 2 or more classes"
        )
    parts = logits.double().tensor_split(splits(len(logits)))
    whole = [resampled(part, torch.ones(1, len(part), dtype=torch.float64)) for part in parts]
    return float(torch.cat(whole).mean())


def splits(count: int) -> int:
    """Ten, fewer where a split would have less than :data:`SPLIT_SIZE` samples, at least one."""
    return max(1, min(SPLITS, count // SPLIT_SIZE))


def resampled(logits: Tensor, counts: Tensor) -> Tensor:
    """The score of one split for B resamples [B]; ``counts`` [B, n]: how often each row is in it."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    weights = counts / counts.sum(1, keepdim=True)
    marginal = weights @ p
    entropies = weights @ (p * log_p).sum(1)
    return (entropies - torch.xlogy(marginal, marginal).sum(1)).exp()
