"""Machine code for decoders on a CPU: it trains and fits rows as PyTorch's operations do."""

from __future__ import annotations

import pickle
import shutil
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
from vadtune.data import IncompleteDataset, MaskedRows
from vadtune.models.products import one_thread, use_threads
from vadtune.native import decoder
from vadtune.native.compiling import HOW
from vadtune.training import native_epoch as machine_code
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
    "solved": {"model": {"layers": 0}},
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
    """Grows by the batches of every epoch that machine code trains."""
    calls: list[int] = []
    train = decoder.train_epoch

    def counted(*args: Any) -> Any:
        calls.append(len(args[-4]))
        return train(*args)

    monkeypatch.setattr(decoder, "train_epoch", counted)
    return calls


@pytest.mark.parametrize("optimiser", ["adamw", "adam"])
@pytest.mark.parametrize("name", KNOWN)
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


@pytest.mark.parametrize("prior", ["standard", "train"])
@pytest.mark.parametrize("name", KNOWN)
def test_fits_rows_as_the_operations_do(
    name: str, prior: str, iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than a block holds, several models at once."""
    own = {"steps": 30, "prior": prior}
    configs = [trial_config(model=KNOWN[name], train={"kl_weight": w}, infer={**own, "lr": w}) for w in (0.05, 0.2)]
    population = Population(configs, iris.train)
    population.train_until(3)
    part = iris.test_part(0.5, 1)
    rows = MaskedRows(*(np.tile(values, (-(-decoder.BLOCK // len(part.x)) + 1, 1)) for values in part))
    found = reconstruct(population.models(), rows)
    monkeypatch.setattr(machine_code, "kernels", lambda name: None)
    np.testing.assert_allclose(found, reconstruct(population.models(), rows), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("layers", [0, 1])
def test_threads_change_nothing(layers: int, iris: IncompleteDataset) -> None:
    (model,) = trained(iris.train, {"layers": layers}, 3).models()
    part = iris.test_part(0.5, 1)
    rows = MaskedRows(*(np.tile(values, (20, 1)) for values in part))
    found = []
    for count in (1, 2, 3):
        use_threads(count)
        try:
            found.append(reconstruct([model], rows))
        finally:
            use_threads(1)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_it_does_not_know_is_left_alone(name: str, iris: IncompleteDataset, native_calls: list[int]) -> None:
    sections = UNKNOWN[name]
    trained(iris.train, sections.get("model", {}), 1, **sections.get("train", {}))
    assert not native_calls


def test_without_numba_everything_trains_as_well(iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    own = trained(iris.train, KNOWN["relu"], 3)
    monkeypatch.setattr(machine_code, "kernels", lambda name: None)
    without = trained(iris.train, KNOWN["relu"], 3)
    assert without._stacked._passes
    assert not own._stacked._passes
    assert own.members[0].metrics == pytest.approx(without.members[0].metrics, rel=1e-4)


def test_beside_a_member_with_dropout_all_is_as_alone(iris: IncompleteDataset, native_calls: list[int]) -> None:
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


@pytest.mark.parametrize(("name", "low", "high"), [("_tanh", -12.0, 12.0), ("_exp", -80.0, 80.0)])
def test_functions_are_those_of_numpy(name: str, low: float, high: float) -> None:
    function = getattr(decoder, name)

    @njit(**HOW)  # type: ignore[untyped-decorator]
    def apply(values: np.ndarray) -> None:
        for i in range(len(values)):
            values[i] = function(values[i])

    x = np.concatenate([np.linspace(low, high, 100_001), [0.0, 1e-6, -1e-4]]).astype(np.float32)
    found = x.copy()
    apply(found)
    expected = getattr(np, name[1:])(x.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-6 if name == "_tanh" else 1e-5)
    beyond = np.array([np.nan, -np.inf, np.inf], np.float32)
    apply(beyond)
    assert np.isnan(beyond[0])
    assert beyond[1] == pytest.approx({"_tanh": -1.0, "_exp": 0.0}[name], abs=1e-30)
    assert beyond[2] == 1 if name == "_tanh" else beyond[2] > 1e34


@one_thread()
def test_its_products_keep_to_the_threads_there_are(iris: IncompleteDataset) -> None:
    trained(iris.train, UNKNOWN["solved"]["model"], 1)
    libraries = [library for library in threadpool_info() if library["internal_api"] == "openblas"]
    assert len(libraries) >= 2
    assert {library["num_threads"] for library in libraries} == {1}


def test_what_has_to_be_compiled_is_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    caplog.set_level("INFO")
    folder = tmp_path / "native"
    shutil.copytree(Path(decoder.__file__).parent, folder, ignore=shutil.ignore_patterns("*.pyc"))
    monkeypatch.setattr(native, "_FOLDER", folder)
    index = folder / "__pycache__" / "decoder.train_epoch-1.nbi"
    index.parent.mkdir(exist_ok=True)
    for file in index.parent.glob("*.nbi"):
        file.unlink()

    native.announce(["decoder"])
    assert "compiling" in caplog.text
    caplog.clear()
    index.write_bytes(pickle.dumps((native.state(), {})))
    native.announce(["decoder"])
    assert not caplog.text
    native.announce(["decoder", "linear"])
    assert "compiling" in caplog.text
    caplog.clear()
    index.write_bytes(pickle.dumps(("of other files", {})))
    native.announce(["decoder"])
    assert "compiling" in caplog.text


@one_thread()
def test_what_is_compiled_is_kept_for_the_next_process(iris: IncompleteDataset) -> None:
    trained(iris.train, KNOWN["relu"], 1)
    kept = [path.read_bytes() for path in Path(decoder.train_epoch._cache.cache_path).glob("decoder.train_epoch*.nbi")]
    assert any(native.state().encode() in content for content in kept)
