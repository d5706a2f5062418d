"""Synthetic data whose number of latent dimensions is known."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from vadtune.core.memory import check_memory
from vadtune.core.schema import Real, Seed, Whole
from vadtune.data.source import DataConfig, RawData
from vadtune.tables import MOST_COLUMNS

_BYTES_PER_CELL = 32  # values, and three copies while they are computed
_GAIN = 1.5  # above 1, so that the tanh units of a deep decoder do not flatten out


class Synthetic(DataConfig):
    """Rows decoded from latents N(0, I) by a random tanh network, every column of variance 1, plus Gaussian noise.

    The network has ``depth`` hidden layers as wide as the data (0: a linear map). ``noise`` is the standard deviation
    of the noise, so no imputation can have a smaller RMSE. The values depend on these options alone.
    """

    source: Literal["synthetic"]
    rows: Annotated[Whole, Field(ge=10, le=10**9)] = 1000
    width: Annotated[Whole, Field(ge=1, le=MOST_COLUMNS)] = 20
    latent: Annotated[Whole, Field(ge=1, le=2**16)] = 2
    depth: Annotated[Whole, Field(ge=0, le=100)] = 2
    noise: Annotated[Real, Field(ge=0)] = 0.05
    seed: Seed = 0

    def load(self) -> RawData:
        """See DataConfig."""
        widest = max(self.width, self.latent)
        check_memory(
            _BYTES_PER_CELL * self.rows * widest + 16.0 * widest * self.width,
            f"data.source: synthetic with {self.rows:,} rows of {self.width:,} columns",
            "lower data.rows or data.width",
        )
        rng = np.random.default_rng([self.seed, 2])
        decoded = rng.standard_normal((self.rows, self.latent))
        for layer in range(self.depth + 1):
            fan_in = decoded.shape[1]
            decoded = decoded @ rng.normal(0, _GAIN / np.sqrt(fan_in), (fan_in, self.width))
            if layer < self.depth:
                decoded = np.tanh(decoded + rng.normal(0, 0.5, self.width))
        signal = (decoded - decoded.mean(0)) / decoded.std(0)
        x = signal + rng.normal(0, self.noise, signal.shape)
        return RawData(x, [f"x{i}" for i in range(self.width)], standardise=True)
