from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import trial_config
from tests.evaluation.test_retest import save_trained
from vadtune.artifacts.model_folder import load_model
from vadtune.cli import main
from vadtune.data import load_dataset
from vadtune.evaluation.previews import Preview, make_preview
from vadtune.reports.preview_figure import preview_plot


def made_up(d: int, *, n: int = 5, images: bool = False) -> Preview:
    rng = np.random.default_rng(0)
    x, mask = rng.random((n, d)), rng.random((n, d)) < 0.5
    mask[0, 0] = False
    side = int(d**0.5)
    return Preview(
        source="digits",
        method="mean of 3 models",
        ratio=0.5,
        feature_names=[f"column {i} of some length" for i in range(d)],
        rows=np.arange(n),
        x_true=x,
        mask=mask,
        x_imputed=np.where(mask, x, x + 0.1),
        image_shape=(side, side) if images else None,
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plots")
    save_trained(folder / "iris/1-a", trial_config())
    save_trained(folder / "iris/2-b", trial_config(model={"latent": 3}))
    save_trained(folder / "digits", trial_config(data={"source": "digits"}))
    return folder


def test_a_preview_is_the_mean_of_the_models_on_test_rows(models: Path) -> None:
    preview = make_preview(models / "iris", ratio=0.4, seed=3)
    dataset = load_dataset(trial_config().data)
    np.testing.assert_array_equal(preview.mask, dataset.test_mask(0.4, 3))
    truth = dataset.scaler.inverse(dataset.test_truth)
    np.testing.assert_array_equal(preview.x_true, truth)
    part = dataset.test_part(0.4, 3)
    imputed = np.mean([load_model(models / "iris" / name).impute(part) for name in ("1-a", "2-b")], axis=0)
    np.testing.assert_allclose(preview.x_imputed, dataset.scaler.inverse(imputed), rtol=1e-5)
    np.testing.assert_array_equal(preview.x_imputed[preview.mask], truth[preview.mask])
    assert preview.image_shape is None
    assert preview.method == "mean of 2 models"
    errors = (preview.x_imputed - truth)[:, 1][~preview.mask[:, 1]]
    assert preview.rmse(axis=0)[1] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert [row["column"] for row in preview.summary()] == preview.feature_names


def test_rows_are_taken_by_seed_and_never_more_than_there_are(models: Path) -> None:
    one, again, other = (make_preview(models / "digits", ratio=0.5, seed=seed).rows for seed in (0, 0, 1))
    assert len(one) == 8
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert len(make_preview(models / "iris", ratio=0.5, seed=0, rows=3).rows) == 3
    assert len(make_preview(models / "iris", ratio=0.5, seed=0, rows=10_000).rows) == 23


def test_errors_are_over_missing_cells_whose_value_is_known() -> None:
    preview = made_up(4)
    assert preview.rmse(axis=0) == pytest.approx(0.1)
    hole = np.where(np.arange(4) == 2, np.nan, preview.x_true)
    unknown = replace(preview, x_true=hole)
    assert np.isnan(unknown.rmse(axis=0)[2])
    assert unknown.rmse(axis=1)[0] == pytest.approx(0.1)
    assert not unknown.scored[:, 2].any()


@pytest.mark.parametrize(
    "preview",
    [
        made_up(64, images=True),
        made_up(784, n=1, images=True),
        made_up(1),
        made_up(4),
        made_up(31),
        replace(made_up(4), x_true=np.where(np.arange(4) == 2, np.nan, made_up(4).x_true)),
        replace(made_up(9, images=True), x_true=np.ones((5, 9)), x_imputed=np.ones((5, 9))),
    ],
    ids=["images", "one large image", "one column", "columns", "many columns", "unknown values", "all the same"],
)
def test_every_preview_can_be_drawn(preview: Preview) -> None:
    png = preview_plot(preview)
    assert png.startswith(b"\x89PNG")
    assert preview_plot(preview) == png, "the same preview gives the same bytes"


def test_missing_pixels_are_amber() -> None:
    import io

    from matplotlib import image

    preview = made_up(64, images=True)
    pixels = image.imread(io.BytesIO(preview_plot(preview)))[..., :3]
    amber = np.abs(pixels - np.array([0xF3, 0xB9, 0x5F]) / 255).max(-1) < 0.01
    observed = image.imread(io.BytesIO(preview_plot(replace(preview, mask=np.ones_like(preview.mask)))))[..., :3]
    legend = np.abs(observed - np.array([0xF3, 0xB9, 0x5F]) / 255).max(-1) < 0.01
    assert amber.sum() - legend.sum() == pytest.approx((~preview.mask).sum() * (0.95 * 150 / 8) ** 2, rel=0.1)


def test_the_command_writes_the_plot_and_prints_the_errors(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new/plot.png"
    assert main(["plot", str(models / "digits"), "--out", str(out), "--rows", "2", "--ratio", "0.8"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["test_row", "missing_cells", "missing_rmse_original"]
    assert len(rows) == 2
