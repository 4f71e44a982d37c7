"""Sampling by a race: the token whose time, an exponential number over its probability, is least.

Its probability to win is its probability: the sample is exact, and the same as the arg-max of
log-probabilities with Gumbel noise. Exponential noise lies within a factor of 2.9e8, so a token
less likely than the likeliest by more than that cannot win. In a distribution sure enough to be
sampled that leaves about five tokens of nine hundred. On a CPU only they run, in numpy: 40 us where
torch takes 140 us for all of them (32 x 919 float32, one core).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid.kernels.noise import GOLDEN, STEP, exponential_torch, mix_words

_HOPELESS = np.float32(3e-9)  # times the largest: below the least noise over the greatest


def race_torch(keys: Tensor, probabilities: Tensor, wanted: Tensor) -> Tensor:
    """Token ids, int64 [M], of the ``wanted`` distributions in ``probabilities``, in order.

    ``probabilities`` float32 [N, V], their ``keys`` int32 [N], ``wanted`` bool [N] with M true.
    """
    if probabilities.device.type == "cpu":
        words = keys.numpy().view(np.uint32)
        return torch.from_numpy(_race(words, probabilities.numpy(), wanted.numpy()))
    noise = exponential_torch(keys[wanted], probabilities.shape[1])
    return (probabilities[wanted] / noise).argmax(-1)


def _race(
    keys: NDArray[np.uint32], probabilities: NDArray[np.float32], wanted: NDArray[np.bool_]
) -> NDArray[np.int64]:
    least = np.where(wanted, probabilities.max(-1) * _HOPELESS, np.float32(np.inf))
    runners = (probabilities > least[:, None]).reshape(-1).nonzero()[0]
    places, tokens = np.divmod(runners, probabilities.shape[1])
    words = keys[places] ^ tokens.astype(np.uint32) * np.uint32(GOLDEN)
    mix_words(words)
    uniform = (words >> np.uint32(9)).astype(np.float32) * np.float32(STEP) + np.float32(STEP / 2)
    finish = np.argsort(probabilities.reshape(-1)[runners] / -np.log(uniform))
    winners = np.zeros(len(wanted), np.int64)
    winners[places[finish]] = tokens[finish]  # the last to be written is the fastest
    return winners[wanted]
