from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import trial_config
from tests.own_data import write_idx
from vadtune.cli import main
from vadtune.core.errors import DataError
from vadtune.data import SOURCES, DataConfig, load_dataset
from vadtune.data.sources.images import _torchvision_datasets

CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


def config(source: str, folder: Path) -> DataConfig:
    return SOURCES[source].model_validate({"source": source, "data_dir": str(folder)})


@pytest.mark.parametrize("source", CLASSES)
def test_idx_files_are_read_with_their_own_split(source: str, tmp_path: Path) -> None:
    images = write_idx(tmp_path, CLASSES[source]).reshape(51, 36) / np.float32(255)
    dataset = load_dataset(config(source, tmp_path))
    assert dataset.layout.image == (6, 6)
    assert dataset.feature_names[7] == "pixel_1_1"
    np.testing.assert_array_equal(dataset.test_truth, images[40:])
    assert (len(dataset.train.x), len(dataset.validation.x)) == (33, 7)
    order = np.random.RandomState(0).permutation(40)
    np.testing.assert_array_equal(
        dataset.train.x[dataset.train.mask], images[order[:33]][dataset.train.mask].astype(np.float32)
    )


def test_the_command_takes_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_idx(tmp_path, "MNIST")
    trial = trial_config().model_copy(update={"data": SOURCES["mnist"].model_validate({"source": "mnist"})})
    (tmp_path / "trial.yaml").write_text(trial.to_yaml())
    assert main(["train", str(tmp_path / "trial.yaml"), "--data-dir", str(tmp_path)]) == 0
    assert "val_missing_rmse" in capsys.readouterr().out


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_they_are_downloaded_where_they_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real download path, from a mirror on this machine."""
    write_idx(tmp_path / "source", "MNIST")
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    resources = []
    for path in sorted((tmp_path / "source/MNIST/raw").iterdir()):
        packed = gzip.compress(path.read_bytes(), mtime=0)
        (mirror / f"{path.name}.gz").write_bytes(packed)
        resources.append((f"{path.name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    reader = _torchvision_datasets("mnist").MNIST
    monkeypatch.setattr(reader, "resources", resources)
    with served(mirror) as url:
        monkeypatch.setattr(reader, "mirrors", [url])
        assert len(load_dataset(config("mnist", tmp_path / "new")).test_truth) == 11
    message = r"could not be downloaded.*put its four IDX files into .*other/MNIST/raw"
    with pytest.raises(DataError, match=message) as raised:  # nobody listens there any more
        load_dataset(config("mnist", tmp_path / "other"))
    assert "\n" not in str(raised.value)


def test_damaged_files_are_an_error(tmp_path: Path) -> None:
    write_idx(tmp_path, "MNIST")
    path = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="is damaged there"):
        load_dataset(config("mnist", tmp_path))
