from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.conftest import trial_config
from tests.own_data import SENTINELS, Published, write_published
from vadtune.core.errors import DataError
from vadtune.data import SOURCES, IncompleteDataset, load_dataset
from vadtune.data.retest_masks import MaskKey, cells_to_score, draw_masks
from vadtune.training.population import Population

PUBLISHED = [name for name, model in SOURCES.items() if model.has_stored_masks]
STORED = {"mechanism": "file", "ratio": 0.5}


def load(source: str, prefix: Path, **values: Any) -> IncompleteDataset:
    return load_dataset(SOURCES[source].model_validate({"source": source, "path": str(prefix), **values}))


def units(source: str) -> float:
    return 255 if "mnist" in source else 1


def original(dataset: IncompleteDataset, x: np.ndarray) -> np.ndarray:
    return dataset.scaler.inverse(x) * units(dataset.config.source)


def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def rows_of(dataset: IncompleteDataset, published: Published, source: str) -> list[np.ndarray]:
    """Returns train and validation rows of the files; only sfm has validation rows of its own."""
    if source == "sfm":
        return [flat(published.train), flat(published.valid)]
    order = np.random.RandomState(0).permutation(len(published.train))
    cut = len(dataset.train.x)
    return [flat(published.train)[order[:cut]], flat(published.train)[order[cut:]]]


@pytest.mark.parametrize("source", PUBLISHED)
def test_the_masks_of_the_files_rule(source: str, tmp_path: Path) -> None:
    published = write_published(tmp_path, source)
    dataset = load(source, published.prefix, missing=STORED)
    masks = published.masks[0.5]
    for part, x in zip((dataset.train, dataset.validation), rows_of(dataset, published, source), strict=True):
        np.testing.assert_allclose(original(dataset, part.x)[part.mask], x[part.mask], atol=1e-4)
        assert np.isnan(part.x[~part.mask]).all()
        assert 0.3 < part.mask.mean() < 0.7
    if source == "sfm":
        np.testing.assert_array_equal(dataset.train.mask, flat(masks["train"]))
        np.testing.assert_array_equal(dataset.validation.mask, flat(masks["valid"]))
    else:
        order = np.random.RandomState(0).permutation(len(published.train))
        joined = np.concatenate([dataset.train.mask, dataset.validation.mask])
        np.testing.assert_array_equal(joined, flat(masks["train"])[order])
        assert len(dataset.validation.x) == round(len(order) * 15 / 85)
    np.testing.assert_allclose(original(dataset, dataset.test_truth), flat(published.test), atol=1e-4)
    for ratio, of_ratio in published.masks.items():
        np.testing.assert_array_equal(dataset.test_mask(ratio, 0), flat(of_ratio["test"]))
    assert (cells_to_score(dataset, dataset.test_mask(0.5, 0)) == ~flat(masks["test"])).all()
    values = original(dataset, np.concatenate([dataset.train.x, dataset.validation.x, dataset.test_truth]))
    assert not np.isin(np.round(values, 3), SENTINELS).any()


@pytest.mark.parametrize("source", PUBLISHED)
def test_train_complete_test_missing_and_drawn_masks(source: str, tmp_path: Path) -> None:
    published = write_published(tmp_path, source)
    adversarial = load(source, published.prefix, missing=STORED, train_missing="none")
    assert adversarial.train.mask.all()
    assert not adversarial.validation.mask.all()
    train, _ = rows_of(adversarial, published, source)
    np.testing.assert_allclose(original(adversarial, adversarial.train.x), train, atol=1e-4)
    np.testing.assert_array_equal(adversarial.test_mask(0.5, 0), flat(published.masks[0.5]["test"]))
    drawn = load(source, published.prefix)
    masks = draw_masks(drawn, [MaskKey(0.7, 3)])
    assert 0.5 < (~masks[MaskKey(0.7, 3)]).mean() < 0.9
    assert np.isfinite(drawn.test_truth).all()


@pytest.mark.parametrize("source", PUBLISHED)
def test_every_layout_trains_with_a_partial_last_batch(source: str, tmp_path: Path) -> None:
    published = write_published(tmp_path, source)
    data = {"source": source, "path": str(published.prefix), "missing": STORED}
    config = trial_config(data=data, train={"epochs": 2, "batch_size": 16})
    dataset = load_dataset(config.data)
    assert len(dataset.train.x) % 16
    population = Population([config], dataset.train)
    population.train_until(2)
    assert np.isfinite(population.members[0].metrics["train_loss"])


def test_images_and_landmarks_know_their_arrangement(tmp_path: Path) -> None:
    layouts = {
        source: load(source, write_published(tmp_path, source).prefix).layout
        for source in ("mnist", "fashion_mnist", "sfm", "mosi")
    }
    assert layouts["mnist"].image == layouts["fashion_mnist"].image == (4, 4)
    assert layouts["sfm"].point_dims == 2
    assert layouts["mosi"] == (None, None)
    landmarks = load("sfm", tmp_path / "sfm", missing={"mechanism": "landmark", "ratio": 0.4})
    assert landmarks.feature_names[:4] == ["x0", "y0", "x1", "y1"]
    points = landmarks.train.mask.reshape(len(landmarks.train.mask), -1, 2)
    np.testing.assert_array_equal(points[..., 0], points[..., 1])


def test_landmarks_nobody_knows_are_holes(tmp_path: Path) -> None:
    published = write_published(tmp_path, "sfm")
    with h5py.File(tmp_path / "sfm.h5", "a") as file:
        for part, mask in published.masks[0.3].items():
            file[f"{part}_mask"] = mask[..., 0]
    dataset = load("sfm", tmp_path / "sfm", missing="none")
    np.testing.assert_array_equal(dataset.train.mask, flat(published.masks[0.3]["train"]))
    np.testing.assert_array_equal(np.isnan(dataset.test_truth), ~flat(published.masks[0.3]["test"]))
    (tmp_path / "sfm.h5").unlink()
    alone = load("sfm", tmp_path / "sfm", missing=STORED)
    assert not cells_to_score(alone, alone.test_mask(0.5, 0)).any(), "nobody knows what was there"


def change(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value


INFINITE = np.full((45, 6), 1.0)
INFINITE[3, 2] = np.inf


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("test_y_true", None, r"mosi_0\.5\.h5: needs the datasets test_y_true as well, got test_mask, test_y, train_"),
        ("train_mask", np.ones((44, 6)), r"train_mask: a mask of shape \(45, 6\) is needed, .* got \(44, 6\)"),
        ("train_mask", np.full((45, 6), 0.5), r"train_mask: a mask holds 1 \(observed\) and 0 .* only, got 0\.5"),
        ("test_y_true", np.ones((12, 6)), r"must have one shape, got \(13, 6\) and \(12, 6\)"),
        ("test_mask", np.ones(13), "test_mask must be numbers in rows, got float64"),
        ("train_y", np.full((45, 6), b"text"), "train_y must be numbers in rows, got"),
        ("train_mask", np.zeros((45, 6)), "columns x0, x1, x2, x3, x4 and 1 more have no value"),
    ],
)
def test_files_that_do_not_fit_together_are_told_in_one_line(
    name: str, value: Any, message: str, tmp_path: Path
) -> None:
    published = write_published(tmp_path, "mosi")
    change(tmp_path / "mosi_0.5.h5", name, value)
    with pytest.raises(DataError, match=message) as raised:
        load("mosi", published.prefix, missing=STORED)
    assert "\n" not in str(raised.value)


def test_infinities_count_where_they_are_observed(tmp_path: Path) -> None:
    published = write_published(tmp_path, "artificial")
    mask = published.masks[0.5]["train"]
    x = np.where(mask, published.train, np.inf)
    change(tmp_path / "artificial_0.5.h5", "train_y", x)
    load("artificial", published.prefix, missing=STORED)
    row, column = np.argwhere(mask)[0]
    x[row, column] = np.inf
    change(tmp_path / "artificial_0.5.h5", "train_y", x)
    with pytest.raises(DataError, match=f"columns x{column} hold others"):
        load("artificial", published.prefix, missing=STORED)


def test_ratios_that_have_no_file_list_those_that_have(tmp_path: Path) -> None:
    published = write_published(tmp_path, "mosei", ratios=(0.5, 0.1))
    (tmp_path / "mosei_notes.h5").write_bytes(b"")
    with pytest.raises(DataError, match=r"mosei_0\.2\.h5: there is no such file; ratios that have one: 0\.1, 0\.5$"):
        load("mosei", published.prefix, missing={"mechanism": "file", "ratio": 0.2})
    dataset = load("mosei", published.prefix, missing=STORED)
    with pytest.raises(DataError, match=r"ratios that have one: 0\.1, 0\.5"):
        draw_masks(dataset, [MaskKey(0.9, 0)])
    (tmp_path / "mosei.h5").unlink()
    with pytest.raises(DataError, match=r"mosei\.h5: there is no such file, .*mechanism=file .* ratios: 0\.1, 0\.5"):
        load("mosei", published.prefix)
    with pytest.raises(DataError, match="ratios: none"):
        load("mosi", tmp_path / "nothing")
    (tmp_path / "mosei.h5").write_bytes(b"no HDF5 at all")
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        load("mosei", published.prefix)


def test_files_of_other_rows_are_not_mixed(tmp_path: Path) -> None:
    published = write_published(tmp_path, "mosi")
    change(tmp_path / "mosi.h5", "train_data", published.train[::-1])
    with pytest.raises(DataError, match="must hold the same rows, got others"):
        load("mosi", published.prefix, missing=STORED, train_missing="none")
    change(tmp_path / "mosi_0.3.h5", "test_y_true", published.test[::-1])
    with pytest.raises(DataError, match=r"mosi_0\.3\.h5: holds other rows"):
        load("mosi", published.prefix, missing=STORED).test_mask(0.3, 0)
    published = write_published(tmp_path, "sfm")
    change(tmp_path / "sfm.h5", "test_2d", published.test[::-1])
    with pytest.raises(DataError, match=r"its test rows must be those of .*sfm\.h5, got others"):
        load("sfm", published.prefix, missing=STORED)


@pytest.mark.parametrize("source", ["sfm", "mosi", "mnist"])
def test_a_signalling_nan_of_a_damaged_file_is_a_hole(source: str, tmp_path: Path) -> None:
    """It would warn in the first operation on it, which a test counts as an error."""
    written = write_published(tmp_path, source)
    name = {"sfm": "train_2d", "mnist": "train_x"}.get(source, "train_data")
    with h5py.File(f"{written.prefix}.h5", "r+") as file:
        values = file[name][()]
        values.view(np.uint32)[0, 0] = 0x7F800001
        file[name][...] = values
    raw = SOURCES[source].model_validate({"source": source, "path": str(written.prefix)}).load()
    assert np.isnan(raw.x).any()
