"""Files made to do harm: each loader answers with one error of ours, executes nothing, and comes back soon."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.config.test_search_file import TREE
from tests.conftest import trial_config
from tests.training.test_population import trained
from vadtune.artifacts.model_folder import load_model, save_model
from vadtune.artifacts.run_folder import read_run
from vadtune.artifacts.training_state import load_state, save_state
from vadtune.config import load_search
from vadtune.core.errors import ConfigError, ModelFolderError, SearchError, VadtuneError
from vadtune.data import IncompleteDataset
from vadtune.data.retest_masks import MaskKey, stored_masks
from vadtune.tracking.spool import Spool

HEAD = "name: tiny\ndata: {source: iris}\n"
MANY = 10_000_000


class Harm:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def bomb(levels: int) -> str:
    """Returns YAML in which each line holds ten of the line before."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "model: {latent: !!python/object/apply:os.system ['touch {harm}']}\n",
        HEAD + "model: {latent: !!python/name:os.system }\n",
        HEAD + "model: !vadtune.artifacts.model_folder.save_model {latent: 3}\n",
        HEAD + bomb(12),
        bomb(12) + HEAD + "model: {latent: *a11}\n",
        HEAD + "model: {latent: [" + "1, " * 100_000 + "1]}\n",
        HEAD + "model: &a {latent: *a}\n",
        HEAD + "model: {latent: {choice: &a [1, *a]}}\n",
        HEAD + "model: " + "[" * 5000 + "]" * 5000 + "\n",
        "name: ../../etc/passwd\ndata: {source: iris}\n",
        "name: /etc/passwd\ndata: {source: iris}\n",
        "name: tiny\ndata: {source: ../../etc/passwd}\n",
        "name: \x00\ndata: {source: iris}\n",
        "? [a, b]\n: 1\n",
        "1: 2\n",
        "<<: 3\n",
        "name: tiny\ndata: {source: iris}\nmodel: {latent: {choice: [[1], {a: 2}]}}\n",
        "\ufeff" * 3,
    ],
    ids=range(18),
)
def test_a_hostile_search_file_is_one_error(text: str, tmp_path: Path) -> None:
    harm, path = tmp_path / "harm", tmp_path / "search.yaml"
    path.write_text(text.replace("{harm}", str(harm)))
    start = time.monotonic()
    with pytest.raises(ConfigError) as raised:
        load_search(path)
    assert time.monotonic() - start < 30, "bounded, on a busy machine too"
    assert all(len(problem) < 3000 and "\n" not in problem for problem in raised.value.problems)
    assert not harm.exists()


def test_a_list_of_ten_million_elements_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(HEAD + "model: {latent: {choice: [" + "1," * MANY + "1]}}\n")
    start = time.monotonic()
    with pytest.raises(ConfigError, match="a search file has at most 1048576 bytes"):
        load_search(path)
    assert time.monotonic() - start < 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, iris: IncompleteDataset) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "model"
    population = trained(trial_config(), iris.train, epochs=1)
    (fitted,) = population.models()
    save_model(folder, fitted.with_metadata(iris.scaler, iris.feature_names), metrics={})
    save_state(folder.parent, population.states()[0])
    return folder


@pytest.mark.parametrize("name", ["weights.safetensors", "latents.safetensors", "config.yaml", "scaler.json"])
def test_a_pickle_in_a_model_folder_is_not_unpickled(name: str, model: Path, tmp_path: Path) -> None:
    import hashlib

    folder, harm = tmp_path / "model", tmp_path / "harm"
    shutil.copytree(model, folder)
    (folder / name).write_bytes(pickle.dumps(Harm(harm)))
    with pytest.raises(VadtuneError):
        load_model(folder)
    manifest = json.loads((folder / "manifest.json").read_text())  # and where the hashes were made to fit
    manifest["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(VadtuneError):
        load_model(folder)
    assert not harm.exists()


@pytest.mark.parametrize(
    "manifest",
    [
        {"format_version": 1, "sha256": {"../../../etc/passwd": "0"}},
        {"format_version": 1, "sha256": [1]},
        {"format_version": 1, "sha256": None},
        {"format_version": {"a": 1}, "sha256": {}},
        {"format_version": 1, "sha256": {"config.yaml": {"a": "b"}}},
        "x" * 100,
        [[]] * 100,
    ],
    ids=range(7),
)
def test_a_hostile_manifest_is_one_error(manifest: Any, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFolderError):
        load_model(tmp_path / "model")


def test_a_hostile_training_state_is_one_error(model: Path, tmp_path: Path, iris: IncompleteDataset) -> None:
    import hashlib

    population, harm = trained(trial_config(), iris.train, epochs=1), tmp_path / "harm"
    huge = (2**60).to_bytes(8, "little") + b"{}"  # a header of an exabyte, says the file
    for content in (pickle.dumps(Harm(harm)), huge, b"", b"\x00" * 100):
        (tmp_path / "training_state.safetensors").write_bytes(content)
        (tmp_path / "training_state.sha256").write_text(hashlib.sha256(content).hexdigest())
        with pytest.raises(ModelFolderError, match="training cannot be resumed"):
            load_state(tmp_path, population)
    assert not harm.exists()


def masks_file(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def test_hostile_masks_are_one_error(tmp_path: Path, iris: IncompleteDataset) -> None:
    harm, path = tmp_path / "harm", tmp_path / "masks.npz"
    header = np.frombuffer(json.dumps({"masks": [], "format_version": 1}).encode(), dtype=np.uint8)
    files: list[bytes] = []
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array([Harm(harm)], dtype=object), bits=np.zeros(1))
    files.append(buffer.getvalue())
    buffer = io.BytesIO()
    np.savez(buffer, header=header, bits=np.array([Harm(harm)], dtype=object))
    files.append(buffer.getvalue())
    files += [pickle.dumps(Harm(harm)), b"PK\x03\x04", b""]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../evil.npy", b"x")
        # An array of an exabyte, says its header; two hundred megabytes of zeros, says the file.
        shape = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1152921504606846976,)}"
        archive.writestr("header.npy", b"\x93NUMPY\x01\x00" + (len(shape) + 1).to_bytes(2, "little") + shape + b"\n")
        archive.writestr("bits.npy", b"\x00" * 200_000_000)
    files.append(buffer.getvalue())
    for content in files:
        path.write_bytes(content)
        start = time.monotonic()
        with pytest.raises(ModelFolderError, match=r"masks\.npz: (stored masks cannot be read|masks of)"):
            stored_masks(path, iris, [MaskKey(0.5, 0)])
        assert time.monotonic() - start < 30, "bounded, on a busy machine too"
    assert not harm.exists()


@pytest.mark.parametrize("text", ["[]", "{}", '{"run": 1}', '"x"', "\x00", "[" * 100_000, "1" * 5000])
def test_a_hostile_run_file_is_one_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SearchError, match="holds no search to resume"):
        read_run(tmp_path)


def test_a_hostile_spool_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "mlflow.jsonl").write_bytes(b"[" * 100_000 + b"\n" + pickle.dumps(Harm(tmp_path / "harm")) + b"\n")
    (tmp_path / "mlflow.delivered").write_text("-5")
    spool = Spool(tmp_path)
    assert {entry["op"] for entry in spool.take()[0]} == {"damaged"}
    assert list(spool.entries()) == []
    assert not (tmp_path / "harm").exists()


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates())
KEYS = st.one_of(
    st.sampled_from(["name", "data", "model", "train", "search", "choice", "int", "when", "latent", "initial", "grid"]),
    st.text(max_size=5),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


def survives(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):
        load_search(path)


@pytest.mark.slow
@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(["name", "data", "model", "train", "infer", "search", "other"]), tree=TREES)
def test_no_section_crashes_the_loader(place: str, tree: Any, tmp_path: Path) -> None:
    survives(tmp_path / "search.yaml", yaml.safe_dump({**TREE, place: tree}, allow_unicode=True).encode())


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_to_a_file_crashes_the_loader(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(yaml.safe_dump(TREE).encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=4))
    survives(tmp_path / "search.yaml", bytes(content))


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
)
def test_no_bytes_crash_the_loader(content: bytes, tmp_path: Path) -> None:
    survives(tmp_path / "search.yaml", content)
