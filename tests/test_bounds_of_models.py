"""Model folders, masks and HDF5 files that leave their place or ask for too much: refused, and nothing else is read."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.finished_search import FinishedSearch
from tests.hostile import refused
from tests.own_data import write_published
from vadtune.artifacts.model_folder import load_model, write_manifest
from vadtune.core.errors import DataError, ModelFolderError
from vadtune.data import SOURCES, IncompleteDataset, load_dataset
from vadtune.data.retest_masks import MaskKey, stored_masks
from vadtune.ensemble.export import export_best
from vadtune.tracking.queries import find_results


@pytest.fixture(scope="module")
def exported(search: FinishedSearch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported ensemble of one model."""
    found = find_results("tiny", search.uri)
    out = tmp_path_factory.mktemp("exported") / "best"
    export_best(found.search, found.trials, metric=found.metric, ensemble="best", refit="none", out=out)
    return out


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy of its model folder, which a test may change."""
    return Path(shutil.copytree(next(exported.glob("01-*")), tmp_path / "model"))


def signed(folder: Path) -> None:
    """Makes the hashes of a changed folder fit."""
    write_manifest(folder, json.loads((folder / "manifest.json").read_text())["provenance"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["weights", "latents"])
def test_tensors_that_are_not_finite_are_refused(name: str, value: float, model: Path) -> None:
    path = model / f"{name}.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = value
    save_file(tensors, path)
    signed(model)
    with pytest.raises(ModelFolderError, match=f"finite {name} expected"):
        load_model(model)


@pytest.mark.parametrize(
    ("key", "value"), [("offset", math.nan), ("scale", math.inf), ("scale", 0.0), ("scale", -1.0), ("offset", 10**400)]
)
def test_a_scaler_that_is_not_finite_is_refused(key: str, value: float, model: Path) -> None:
    scaler = json.loads((model / "scaler.json").read_text())
    scaler[key][0] = value
    (model / "scaler.json").write_text(json.dumps(scaler))
    signed(model)
    with pytest.raises(ModelFolderError, match="its files do not fit together"):
        load_model(model)


def test_a_regression_that_is_not_finite_is_refused() -> None:
    from vadtune.ensemble.kernel_regression import KernelRegression

    parts = torch.zeros(3, 2), torch.zeros(2, 3), torch.tensor([0.0, math.inf])
    with pytest.raises(ValueError, match="numbers out of range"):
        KernelRegression.from_bytes(KernelRegression(*parts, 1.0, 0.5, 0.5).to_bytes())


def to_itself(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def outside(path: Path) -> None:
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(40_000_000_000)


FILES = ["config.yaml", "weights.safetensors", "latents.safetensors", "scaler.json", "metrics.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [outside, pipe, device, sparse])
def test_a_file_of_a_model_is_a_small_file_of_its_folder(
    change: Callable[[Path], None], name: str, model: Path
) -> None:
    change(model / name)
    with pytest.raises(ModelFolderError, match=r"a symbolic link that leaves|not a regular file|bytes expected"):
        load_model(model)


def test_a_link_within_a_model_folder_is_fine(model: Path) -> None:
    to_itself(model / "config.yaml")
    assert load_model(model).config.name == "tiny"


@pytest.mark.slow
def test_a_sparse_weights_file_of_the_right_hash_is_refused_unread(model: Path, tmp_path: Path) -> None:
    sparse(model / "weights.safetensors")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    line = refused("impute", "model", "table.csv", "--out", "x.csv", folder=tmp_path)
    assert "weights.safetensors cannot be read (at most 536870912 bytes expected, got 40000000000)" in line


@pytest.mark.parametrize("name", ["ensemble.json", "01"])
def test_an_ensemble_is_in_its_folder(name: str, exported: Path, tmp_path: Path) -> None:
    best = Path(shutil.copytree(exported, tmp_path / "best"))
    place = next(best.glob(f"{name}*"))
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    line = refused("retest", "best", "--out", "out", "--no-log", folder=tmp_path)
    assert "a symbolic link that leaves its folder" in line


@pytest.mark.slow
def test_a_retest_does_not_write_where_a_link_of_the_folder_leads(exported: Path, tmp_path: Path) -> None:
    best = Path(shutil.copytree(exported, tmp_path / "best"))
    (tmp_path / "mine").mkdir()
    (best / "retest").symlink_to(tmp_path / "mine")
    assert "a symbolic link that leaves its folder" in refused("retest", "best", "--no-log", folder=tmp_path)


@pytest.mark.slow
def test_a_retest_neither_creates_folders_nor_downloads(model: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((model / "config.yaml").read_text())
    config["data"] = {"source": "mnist", "data_dir": str(tmp_path / "new" / "folder")}
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    signed(model)
    assert "for a model folder nothing is downloaded" in refused("retest", "model", "--no-log", folder=tmp_path)


@pytest.mark.parametrize("change", [outside, pipe, device])
def test_images_are_regular_files(change: Callable[[Path], None], tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"")
    change(raw / "t10k-images-idx3-ubyte")
    with pytest.raises(DataError, match=r"not a regular file|is damaged there"):
        load_dataset(SOURCES["mnist"].model_validate({"source": "mnist", "data_dir": str(tmp_path)}))


@pytest.mark.slow
def test_masks_that_unpack_to_gigabytes_are_refused(iris: IncompleteDataset, tmp_path: Path) -> None:
    path, buffer = tmp_path / "masks.npz", io.BytesIO()
    header = json.dumps({"masks": [{"ratio": 0.5, "seed": 0, "sha256": ""}]}).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        np.save(buffer, np.frombuffer(header, np.uint8))
        archive.writestr("header.npy", buffer.getvalue())
        buffer = io.BytesIO()
        described = {"descr": "|u1", "fortran_order": False, "shape": (1, 2**31)}
        np.lib.format.write_array_header_1_0(buffer, described)
        with archive.open("bits.npy", "w", force_zip64=True) as member:
            member.write(buffer.getvalue())
            for _ in range(2**7):
                member.write(bytes(2**24))
    with pytest.raises(ModelFolderError, match="it unpacks to more than it holds"):
        stored_masks(path, iris, [MaskKey(0.5, 0)])


def external_link(file: Any, name: str, other: Path) -> None:
    file[name] = h5py.ExternalLink(str(other), name)


def soft_link(file: Any, name: str, other: Path) -> None:
    file["group"] = h5py.ExternalLink(str(other), "/")
    file[name] = h5py.SoftLink(f"/group/{name}")


def external_storage(file: Any, name: str, other: Path) -> None:
    file.create_dataset(name, (2, 4), "u1", external=[(str(other), 0, 8)])


def virtual(file: Any, name: str, other: Path) -> None:
    layout = h5py.VirtualLayout((30, 5), "f8")
    layout[:] = h5py.VirtualSource(str(other), name, (30, 5))
    file.create_virtual_dataset(name, layout)


def bomb(file: Any, name: str, other: Path) -> None:
    file.create_dataset(name, (2**20, 2**10), "f8", chunks=(2**10, 2**10), compression="gzip")


def large_chunk(file: Any, name: str, other: Path) -> None:
    rows = file.create_dataset(name, (2, 2), "u1", chunks=(2**15, 2**16), maxshape=(None, None), compression="gzip")
    rows.id.write_direct_chunk((0, 0), b"x")


@pytest.mark.parametrize("change", [external_link, soft_link, external_storage, virtual, bomb, large_chunk])
def test_an_hdf5_file_holds_its_values_itself(change: Callable[[Any, str, Path], None], tmp_path: Path) -> None:
    prefix = write_published(tmp_path, "mosi", ratios=(0.5,)).prefix
    path = prefix.with_name(f"{prefix.name}.h5")
    shutil.copy(path, tmp_path / "other.h5")
    with h5py.File(path, "r+") as file:
        del file["train_data"]
        change(file, "train_data", tmp_path / "other.h5")
    config = SOURCES["mosi"].model_validate({"source": "mosi", "path": str(prefix)})
    message = "may lead to another file|are in other files|it unpacks to"
    with pytest.raises(DataError, match=f"cannot be read as HDF5 .*({message})"):
        load_dataset(config)
    (tmp_path / "other.h5").unlink()  # it is not even looked for
    with pytest.raises(DataError, match=f"cannot be read as HDF5 .*({message})"):
        load_dataset(config)
