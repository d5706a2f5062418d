from __future__ import annotations

import numpy as np
import pytest

from vadtune.data import load_dataset
from vadtune.data.sources.synthetic import Synthetic


def x_of(**options: object) -> np.ndarray:
    config = Synthetic.model_validate({"source": "synthetic", **options})
    return config.load().x


def test_size_seed_and_noise_are_the_files() -> None:
    x = x_of(rows=200, width=7, seed=3)
    assert x.shape == (200, 7)
    np.testing.assert_array_equal(x, x_of(rows=200, width=7, seed=3))
    assert (x != x_of(rows=200, width=7, seed=4)).any()
    noise = x_of(rows=2000, width=7, noise=0.5) - x_of(rows=2000, width=7, noise=0)
    np.testing.assert_allclose(noise.std(0), 0.5, rtol=0.1)
    np.testing.assert_allclose(x_of(rows=2000, noise=0).std(0), 1)


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_without_hidden_layers_the_rank_is_the_number_of_latents(latent: int) -> None:
    x = x_of(rows=100, width=8, latent=latent, depth=0, noise=0)
    assert np.linalg.matrix_rank(x - x.mean(0), tol=1e-8) == latent
    assert np.linalg.matrix_rank(x_of(rows=100, width=8, latent=latent, depth=2, noise=0), tol=1e-8) == 8


def test_it_is_standardised_for_training() -> None:
    dataset = load_dataset(Synthetic.model_validate({"source": "synthetic", "rows": 50, "width": 3}))
    assert dataset.feature_names == ["x0", "x1", "x2"]
    np.testing.assert_allclose(np.nanstd(dataset.train.x, axis=0), 1, atol=1e-3)
