"""Made-up data whose number of latent dimensions is known."""

from __future__ import annotations

import numpy as np

from vadtune.config.schema import DataConfig
from vadtune.data.sources.source import Source

_GAIN = 1.5  # above 1, so that the curves of a deep decoder do not flatten out


def load_synthetic(config: DataConfig) -> Source:
    """Returns rows decoded from latents N(0, I) by a random tanh network, every column of variance 1, plus noise.

    The network has ``depth`` hidden layers as wide as the data (0: a linear map). ``noise`` is the standard deviation
    of Gaussian noise, so no imputation can have a smaller RMSE. All is a function of the section's numbers alone.
    """
    rng = np.random.default_rng([config.seed, 2])
    decoded = rng.standard_normal((config.rows, config.latent))
    for layer in range(config.depth + 1):
        fan_in = decoded.shape[1]
        decoded = decoded @ rng.normal(0, _GAIN / np.sqrt(fan_in), (fan_in, config.width))
        if layer < config.depth:
            decoded = np.tanh(decoded + rng.normal(0, 0.5, config.width))
    signal = (decoded - decoded.mean(0)) / decoded.std(0)
    x = signal + rng.normal(0, config.noise, signal.shape)
    return Source(x, [f"x{i}" for i in range(config.width)], standardise=True)
