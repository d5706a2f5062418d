"""Compiled kernels for decoders: they train and fit rows as PyTorch does, and are optional and cached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from threadpoolctl import threadpool_info

from tests.conftest import trial_config
from vadtune import native
from vadtune.core.errors import TrialDiverged
from vadtune.core.threads import use_threads
from vadtune.data import IncompleteDataset, MaskedRows
from vadtune.native import decoder_kernels, decoder_passes
from vadtune.native.compiling import OPTIONS
from vadtune.training.inference import reconstruct
from vadtune.training.population import Population

KNOWN: dict[str, dict[str, Any]] = {
    "relu": {"layers": 2},
    "tanh": {"activation": "tanh", "layers": 3},
    "narrow": {"latent": 1, "hidden": 3},
    "skip": {"skip": True},
    "noise": {"noise": "learned"},
    "all": {"activation": "tanh", "layers": 2, "skip": True, "noise": "learned"},
    "fixed": {"posterior": "fixed", "log_var": -1.5},
    "deterministic": {"posterior": "none"},
    "linear-fixed": {"layers": 0, "posterior": "fixed", "log_var": -3.0},
    "linear-deterministic": {"layers": 0, "posterior": "none", "noise": "learned"},
}
UNKNOWN: dict[str, dict[str, Any]] = {
    "vae": {"model": {"family": "vae"}},
    "closed-form": {"model": {"layers": 0}},
    "silu": {"model": {"activation": "silu"}},
    "linear": {"model": {"activation": "linear"}},
    "layer-norm": {"model": {"layer_norm": True}},
    "dropout": {"model": {"dropout": 0.1}},
    "projection": {"model": {"head": "projection"}},
    "sgd": {"train": {"optimiser": "sgd"}},
    "bf16": {"train": {"precision": "bf16"}},
    "off": {"train": {"compile": "off"}},
}


def trained(train: MaskedRows, model: dict[str, Any], epochs: int, **settings: Any) -> Population:
    config = trial_config(model=model, train={"batch_size": 16, "epochs": 30, **settings})
    population = Population([config], train)
    population.train_until(epochs)
    return population


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of batches of every epoch that a kernel trains."""
    calls: list[int] = []
    train = decoder_kernels.train_epoch

    def counted(*args: Any) -> Any:
        calls.append(len(args[-1].net_lr))
        return train(*args)

    monkeypatch.setattr(decoder_kernels, "train_epoch", counted)
    return calls


@pytest.mark.parametrize(("name", "optimiser"), [*((name, "adamw") for name in KNOWN), ("all", "adam")])
def test_trains_as_the_operations_do(
    name: str, optimiser: str, iris: IncompleteDataset, native_calls: list[int]
) -> None:
    """The first steps of the networks nearly to the last bit, the losses of a whole training closely. A row's first
    steps hang on the sign of its gradient alone, and so on rounding where that is nearly 0."""
    settings = {"optimiser": optimiser, "weight_decay": 0.1, "latent_lr": 0.05}
    for epochs, tolerance in ((1, 2e-5), (30, 2e-3)):
        own = trained(iris.train, KNOWN[name], epochs, **settings)
        assert sum(native_calls) == epochs * -(-len(iris.train.x) // 16)
        native_calls.clear()
        plain = trained(iris.train, KNOWN[name], epochs, compile="off", **settings)
        assert not native_calls
        (state,), (expected,) = own.states(), plain.states()
        for what in ("train_loss", "train_reconstruction", "train_kl"):
            torch.testing.assert_close(state[what], expected[what], rtol=tolerance, atol=1e-6, msg=what)
        if epochs == 1:
            for what in ("weights", "weight_moments"):
                torch.testing.assert_close(state[what], expected[what], rtol=1e-4, atol=1e-5, msg=what)


@pytest.mark.parametrize(("name", "prior"), [*((name, "standard") for name in KNOWN), ("all", "train")])
def test_fits_rows_as_the_operations_do(
    name: str, prior: str, iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than a block holds, several models at once."""
    own = {"steps": 30, "prior": prior}
    configs = [trial_config(model=KNOWN[name], train={"kl_weight": w}, infer={**own, "lr": w}) for w in (0.05, 0.2)]
    population = Population(configs, iris.train)
    population.train_until(3)
    part = iris.test_part(0.5, 1)
    rows = MaskedRows(*(np.tile(values, (-(-decoder_kernels.BLOCK // len(part.x)) + 1, 1)) for values in part))
    found = reconstruct(population.models(), rows)
    monkeypatch.setattr(native, "is_available", lambda: False)
    np.testing.assert_allclose(found, reconstruct(population.models(), rows), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("layers", [0, 1])
def test_threads_change_nothing(layers: int, iris: IncompleteDataset) -> None:
    """Neither training nor inference; the decoder is wide enough for BLAS to use several threads."""
    rng = np.random.default_rng(0)
    train = MaskedRows(rng.standard_normal((300, 200)).astype(np.float32), rng.random((300, 200)) > 0.3)
    found = []
    for count in (1, 2, 3):
        use_threads(count)
        try:
            (model,) = trained(train, {"layers": layers, "hidden": 256, "latent": 20}, 2, batch_size=100).models()
            found.append((model.weights, reconstruct([model], train)))
        finally:
            use_threads(1)
    for weights, x_hat in found[1:]:
        assert torch.equal(weights, found[0][0])
        assert np.array_equal(x_hat, found[0][1])


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_it_does_not_know_is_left_alone(name: str, iris: IncompleteDataset, native_calls: list[int]) -> None:
    sections = UNKNOWN[name]
    trained(iris.train, sections.get("model", {}), 1, **sections.get("train", {}))
    assert not native_calls


def test_packed_with_dropout_equals_alone(iris: IncompleteDataset, native_calls: list[int]) -> None:
    configs = [trial_config(model={"dropout": rate}, train={"kl_weight": 0.1 + rate}) for rate in (0.2, 0.0, 0.4, 0.0)]
    together = Population(configs, iris.train)
    together.train_until(3)
    for member, state in zip(together.members, together.states(), strict=True):
        alone = Population([member.config], iris.train)
        alone.train_until(3)
        for what in ("weights", "rows", "train_loss"):
            assert torch.equal(state[what], alone.states()[0][what]), what
    assert native_calls


def test_what_diverges_is_told(iris: IncompleteDataset, native_calls: list[int]) -> None:
    with pytest.raises(TrialDiverged, match="became NaN or infinite"):
        trained(iris.train, KNOWN["relu"], 30, net_lr=1e30)
    assert native_calls


def test_a_batch_without_observed_cells_changes_no_loss(iris: IncompleteDataset, native_calls: list[int]) -> None:
    empty = MaskedRows(iris.train.x, np.zeros_like(iris.train.mask))
    empty.mask[0, 0] = True
    population = trained(empty, KNOWN["all"], 3)
    assert np.isfinite([*population.members[0].metrics.values()]).all()
    assert native_calls


@pytest.mark.parametrize(("name", "low", "high"), [("tanh", -12.0, 12.0), ("exp", -80.0, 80.0)])
def test_functions_are_those_of_numpy(name: str, low: float, high: float) -> None:
    function = getattr(decoder_passes, name)

    @njit(**OPTIONS)  # type: ignore[untyped-decorator]
    def apply(values: np.ndarray) -> None:
        for i in range(len(values)):
            values[i] = function(values[i])

    x = np.concatenate([np.linspace(low, high, 100_001), [0.0, 1e-6, -1e-4]]).astype(np.float32)
    found = x.copy()
    apply(found)
    expected = getattr(np, name)(x.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-6 if name == "tanh" else 1e-5)
    beyond = np.array([np.nan, -np.inf, np.inf], np.float32)
    apply(beyond)
    assert np.isnan(beyond[0])
    assert beyond[1] == pytest.approx({"tanh": -1.0, "exp": 0.0}[name], abs=1e-30)
    assert beyond[2] == 1 if name == "tanh" else beyond[2] > 1e34


def test_a_kernel_runs_blas_on_one_thread() -> None:
    """All libraries, SciPy's among them, and only while it runs."""

    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    use_threads(2)
    try:
        assert native.call(threads) == {1}
        assert native.call_on_row_blocks(lambda rows: threads(), 4, 2, 2) == [{1}, {1}]
        assert threads() == {2}
    finally:
        use_threads(1)


TRAIN = """
import logging
logging.basicConfig(level="INFO", format="%(message)s")
from tests.conftest import trial_config
from vadtune import native
from vadtune.data import load_dataset
from vadtune.training.population import Population
config = trial_config(train={"epochs": 1, "weight_decay": 0.1})
population = Population([config], load_dataset(config.data).train)
population.train_until(1)
print(population.members[0].metrics["train_loss"])
print("kernel" if native.supports_training(config) else "operations")
"""


def run(code: str, **environment: str) -> tuple[list[str], str]:
    """Returns the lines a new process prints, and its log."""
    path = os.pathsep.join([*environment.values(), str(Path(__file__).parents[2])])
    variables = {**os.environ, **environment, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    return done.stdout.split(), done.stderr


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    code = TRAIN + "from vadtune.native.decoder_kernels import train_epoch\n"
    code += "print(sum(train_epoch.stats.cache_hits.values()), sum(train_epoch.stats.cache_misses.values()))"
    first, log = run(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert first[1:] == ["kernel", "0", "1"]
    assert log.count("compiling machine code") == 1
    again, log = run(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert again[1:] == ["kernel", "1", "0"]
    assert float(again[0]) == pytest.approx(float(first[0]), rel=1e-6)
    assert "compiling" not in log


def test_the_cache_belongs_to_the_content_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = native.cache_path()
    for file in Path(native.__file__).parent.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    assert native.cache_path.__wrapped__().name == path.name
    (tmp_path / "compiling.py").write_text("# another")
    assert native.cache_path.__wrapped__().name != path.name


BROKEN = {
    "missing": "raise ModuleNotFoundError(\"No module named 'numba'\", name='numba')",
    "numpy": "raise ImportError('Numba needs NumPy 2.4 or less')",
    "llvm": "raise OSError('Could not find/load shared object file libllvmlite.so')",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", BROKEN)
def test_without_numba_everything_trains_and_one_warning_says_so(fault: str, tmp_path: Path) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(BROKEN[fault])
    (loss, how), log = run(TRAIN, PYTHONPATH=str(tmp_path))
    assert how == "operations"
    assert log.count("numba cannot be imported") == 1
    assert "pip install" in log
    (expected, how), log = run(TRAIN)
    assert how == "kernel"
    assert "numba" not in log
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_kernels_work_where_nothing_can_be_cached(tmp_path: Path) -> None:
    """Numba then looks for folders of its own, and else compiles for the process alone."""
    code = (
        "import numba.core.caching as c, sys\n"
        "from vadtune.native.compiling import kernel\n"
        "@kernel(lambda: (1,))\ndef double(x):\n    return 2 * x\n"
        "print(double(4))"
    )
    assert run(code, NUMBA_CACHE_DIR="/dev/null/nowhere")[0] == ["8"]


@pytest.mark.parametrize(
    ("model", "train", "uses"),
    [
        ({}, {}, True),
        ({"activation": "gelu"}, {}, False),
        ({"activation": {"choice": ["gelu", "relu"]}}, {}, True),
        ({}, {"compile": "off"}, False),
        ({"layers": {"int": [0, 1]}}, {"compile": "off"}, True),  # linear decoders have a kernel of their own
    ],
)
def test_a_search_announces_kernels_only_if_it_may_use_them(
    model: dict[str, object],
    train: dict[str, object],
    uses: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from vadtune.config import parse_search

    monkeypatch.setattr(native, "cache_path", lambda: tmp_path)
    native.log_compilation.cache_clear()
    tree = {"name": "tiny", "data": {"source": "iris"}, "model": {"layers": 1, **model}, "train": train}
    with caplog.at_level("INFO"):
        native.announce_compilation_by_workers(parse_search(tree))
        assert ("compiling" in caplog.text) is uses
        (tmp_path / "kernel.nbi").write_bytes(b"")
        caplog.clear()
        native.log_compilation.cache_clear()
        native.announce_compilation_by_workers(parse_search(tree))
    assert "compiling" not in caplog.text
