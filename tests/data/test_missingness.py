from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadtune.core.errors import DataError
from vadtune.data import MECHANISMS, Layout
from vadtune.data.missingness import DrawnMask, StoredMask, draw_mask

N, D = 200, 50
LAYOUTS = [Layout(image=(5, 10), point_dims=2), Layout(point_dims=5), Layout(image=(10, 5), point_dims=1)]


def values(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = {
        "normal": rng.normal(size=(N, 3)) @ rng.normal(size=(3, D)),
        "constant": np.full((N, D), 7.25),
        "heavy": rng.standard_cauchy((N, D)) * 1e6,
        "ties": rng.integers(0, 2, (N, D)).astype(float),
    }[kind]
    if kind == "normal":
        x[rng.random(x.shape) < 0.2] = np.nan
    return x


@pytest.mark.parametrize("mechanism", [name for name, model in MECHANISMS.items() if issubclass(model, DrawnMask)])
@pytest.mark.parametrize("kind", ["normal", "constant", "heavy", "ties"])
@settings(max_examples=25, deadline=None)  # the first draw imports SciPy
@given(ratio=st.floats(0.03, 0.97), seed=st.integers(0, 10_000), layout=st.sampled_from(LAYOUTS))
def test_masks_meet_their_ratio_and_repeat_per_seed(
    mechanism: str, kind: str, ratio: float, seed: int, layout: Layout
) -> None:
    x = values(kind)
    known = ~np.isnan(x)
    mask = draw_mask(MECHANISMS[mechanism](), x, ratio, seed=seed, part="test", layout=layout)
    assert mask.shape == x.shape
    assert mask.dtype == bool
    assert not mask[~known].any(), "holes of the source are never observed"
    units = known.sum() / ((layout.point_dims or 1) if mechanism == "landmark" else 1)
    tolerance = 5 * np.sqrt(ratio * (1 - ratio) / units)
    # Where known cells are is independent of blocks and of the drivers of mar, but adds its own spread.
    assert abs((~mask)[known].mean() - ratio) < tolerance + (0.02 if not known.all() else 1e-9)
    np.testing.assert_array_equal(
        mask, draw_mask(MECHANISMS[mechanism](), x, ratio, seed=seed, part="test", layout=layout)
    )
    assert (mask != draw_mask(MECHANISMS[mechanism](), x, ratio, seed=seed + 1, part="test", layout=layout)).any()
    assert (mask != draw_mask(MECHANISMS[mechanism](), x, ratio, seed=seed, part="train", layout=layout)).any()


def test_holes_of_the_source_are_all_that_is_missing_at_ratio_0() -> None:
    x = values("normal")
    np.testing.assert_array_equal(draw_mask(MECHANISMS["mnar"](), x, 0.0, seed=0, part="train"), ~np.isnan(x))


def test_mar_depends_on_columns_that_stay_observed_and_on_nothing_else() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 10))
    mask = draw_mask(MECHANISMS["mar"](), x, 0.4, seed=0, part="train")
    drivers = mask.all(0)
    assert drivers.sum() == 3
    other = np.where(drivers, x, rng.normal(size=x.shape))
    np.testing.assert_array_equal(draw_mask(MECHANISMS["mar"](), other, 0.4, seed=0, part="train"), mask)
    assert (draw_mask(MECHANISMS["mar"](), x[::-1], 0.4, seed=0, part="train") != mask).any()
    # The same mechanism under another seed and in another part; the missing rows differ in their drivers.
    np.testing.assert_array_equal(draw_mask(MECHANISMS["mar"](), x, 0.4, seed=1, part="test").all(0), drivers)
    gaps = [
        np.abs(x[mask[:, j]][:, drivers].mean(0) - x[~mask[:, j]][:, drivers].mean(0)).max()
        for j in np.flatnonzero(~drivers)
    ]
    assert min(gaps) > 0.2


def test_mar_refuses_a_ratio_that_leaves_nothing_to_depend_on() -> None:
    assert draw_mask(MECHANISMS["mar"](), np.zeros((20, 4)), 0.75, seed=0, part="train").any()
    with pytest.raises(DataError, match=r"4 columns bear a ratio up to 0\.750, got 0\.8; lower it, or take mcar"):
        draw_mask(MECHANISMS["mar"](), np.zeros((20, 4)), 0.8, seed=0, part="train")


@pytest.mark.parametrize("mechanism", ["mnar", "mnar_quantile"])
def test_mnar_hides_great_values_of_every_column(mechanism: str) -> None:
    x = np.random.default_rng(0).normal(size=(2000, 6)) * (1, 10, 100, 1, 1, 1) + (0, 0, 0, 5, -5, 0)
    mask = draw_mask(MECHANISMS[mechanism](), x, 0.4, seed=0, part="train")
    np.testing.assert_allclose((~mask).mean(0), 0.4, atol=0.06)
    for column, observed in zip(x.T, mask.T, strict=True):
        assert column[~observed].mean() - column[observed].mean() > 0.5 * column.std()


def test_quantile_self_masking_spares_the_lower_part() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 4))
    mask = draw_mask(MECHANISMS["mnar_quantile"](), x, 0.25, seed=0, part="train")
    assert (x[~mask] >= np.median(x, axis=0).min()).all()
    assert mask[x < np.median(x, axis=0)].all()


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_blocks_are_squares_of_images_and_runs_of_columns(ratio: float) -> None:
    image = ~draw_mask(
        MECHANISMS["block"](), np.zeros((300, 64)), ratio, seed=0, part="train", layout=Layout(image=(8, 8))
    )
    for patch in image.reshape(300, 8, 8):
        rows, columns = np.flatnonzero(patch.any(1)), np.flatnonzero(patch.any(0))
        assert len(rows) == len(columns)
        assert patch[np.ix_(rows, columns)].all()
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
    assert abs(image.mean() - ratio) < 0.002
    if ratio < 0.8:
        assert image.reshape(300, 8, 8)[:, 0, 0].any()
        assert image.reshape(300, 8, 8)[:, 7, 7].any()
    for run in ~draw_mask(MECHANISMS["block"](), np.zeros((300, 13)), ratio, seed=0, part="train"):
        assert (np.diff(np.flatnonzero(run)) == 1).all()


def test_landmarks_go_missing_as_a_whole() -> None:
    mask = draw_mask(
        MECHANISMS["landmark"](), np.zeros((50, 12)), 0.4, seed=0, part="train", layout=Layout(point_dims=3)
    )
    points = mask.reshape(50, 4, 3)
    np.testing.assert_array_equal(points.any(-1), points.all(-1))
    with pytest.raises(DataError, match="landmark hides whole points, but this source has none"):
        draw_mask(MECHANISMS["landmark"](), np.zeros((50, 12)), 0.4, seed=0, part="train")


def test_a_stored_mask_draws_none() -> None:
    """Masks of a search without hidden cells may be asked for at another ratio, by a retest."""
    stored = StoredMask(mechanism="file", ratio=0.0)
    np.testing.assert_array_equal(
        draw_mask(stored, values("normal"), 0, seed=0, part="test"), ~np.isnan(values("normal"))
    )
    with pytest.raises(DataError, match=r"file with ratio 0 has no mask of ratio 0\.5; name a mechanism that draws"):
        draw_mask(stored, values("normal"), 0.5, seed=0, part="test")
