from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import trial_config
from vadtune.config import REPORTED_METRICS, TrialConfig
from vadtune.core.errors import ConfigError, TrialDiverged
from vadtune.core.metrics import score
from vadtune.core.sampling import sample_rows
from vadtune.data import IncompleteDataset, MaskedRows, load_dataset
from vadtune.models import MODELS
from vadtune.training import native_epoch, scoring
from vadtune.training import population as population_module
from vadtune.training.batches import Epoch
from vadtune.training.inference import infer
from vadtune.training.member import Member
from vadtune.training.optimiser import OPTIMISERS, SCHEDULES, Plateau
from vadtune.training.population import Population
from vadtune.training.scoring import evaluate, follows_shortly
from vadtune.training.train_rows import TrainRows

KINDS = [
    pytest.param({"family": family, "posterior": posterior}, id=f"{family}-{posterior}")
    for family in MODELS
    for posterior in ("learned", "fixed", "none")
]
DRESSED = {"layers": 2, "activation": "silu", "layer_norm": True, "dropout": 0.2, "head": "projection"}
KINDS += [pytest.param({"family": family, **DRESSED}, id=f"{family}-dressed") for family in MODELS]
KINDS += [pytest.param({"family": family, "skip": True}, id=f"{family}-skip") for family in MODELS]
KINDS += [pytest.param({"layers": 0}, id="vad-closed-form")]
EQUAL_NOISE = list(KINDS)
KINDS += [pytest.param({"family": family, "noise": "learned"}, id=f"{family}-noise") for family in MODELS]
KINDS += [pytest.param({"layers": 0, "noise": "learned"}, id="vad-closed-form-noise")]


def trained(config: TrialConfig, train: MaskedRows, epochs: int = 4) -> Population:
    return trained_together([config], train, epochs)


def trained_together(configs: list[TrialConfig], train: MaskedRows, epochs: int = 4) -> Population:
    population = Population(configs, train)
    population.train_until(epochs)
    return population


def assert_same_state(one: Population, other: Population) -> None:
    for mine, others in zip(one.states(), other.states(), strict=True):
        for name, tensor in mine.items():
            if name != "progress":  # holds seconds
                torch.testing.assert_close(others[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("model", KINDS)
def test_training_lowers_the_loss(model: dict[str, Any], iris: IncompleteDataset) -> None:
    config = trial_config(model=model, train={"epochs": 60})
    population = Population([config], iris.train)
    population.train_until(1)
    before = population.members[0].metrics["train_loss"]
    population.train_until(60)
    share = 0.98 if model.get("layers") == 0 else 0.8  # EM starts near its end
    assert population.members[0].metrics["train_loss"] < share * before


@pytest.mark.parametrize("model", KINDS)
def test_same_seed_same_result_whatever_ran_before(model: dict[str, Any], iris: IncompleteDataset) -> None:
    config = trial_config(model=model)
    first = trained(config, iris.train)
    torch.randn(7)
    np.random.rand(3)
    trained(trial_config(model={"latent": 3}), iris.train)
    assert_same_state(first, trained(config, iris.train))
    other_seed = trained(trial_config(model=model, train={"seed": 1}), iris.train)
    assert not torch.equal(first.states()[0]["weights"], other_seed.states()[0]["weights"])


@pytest.mark.parametrize("model", KINDS)
def test_contents_of_missing_cells_reach_nothing(model: dict[str, Any], iris: IncompleteDataset) -> None:
    """NaN, infinities or anything else under the mask gives the very same weights and scores."""
    config = trial_config(model=model)
    clean = trained(config, iris.train)
    for content in (np.inf, -100.0, 1e30):
        dirty = MaskedRows(np.where(iris.train.mask, iris.train.x, np.float32(content)), iris.train.mask)
        assert_same_state(clean, trained(config, dirty))


def own_dropout(model: dict[str, Any], index: int) -> dict[str, float]:
    """Returns a rate of the member's own, 0 for the first, where the model has dropout."""
    return {"dropout": 0.15 * (index % 5)} if "dropout" in model else {}


@pytest.mark.parametrize("model", KINDS)
def test_packed_equals_alone(model: dict[str, Any], iris: IncompleteDataset) -> None:
    configs = [
        trial_config(
            model={**model, "log_var": -3.0 + i, **own_dropout(model, i)},
            train={
                "kl_weight": 0.05 * i,
                "net_lr": 1e-3 * (i + 1),
                "latent_lr": 0.05 * (i + 1),
                "weight_decay": 0.1 * i,
            },
        )
        for i in range(3)
    ]
    packed = Population(configs, iris.train)
    packed.train_until(4)
    scores = evaluate(packed, iris.search_data)
    for i, config in enumerate(configs):
        alone = trained(config, iris.train)
        for name in ("weights", "rows"):
            torch.testing.assert_close(packed.states()[i][name], alone.states()[0][name], rtol=1e-5, atol=1e-6)
        own = evaluate(alone, iris.search_data)[0].scores
        assert scores[i].scores["val_missing_rmse"] == pytest.approx(own["val_missing_rmse"], rel=1e-3)


@pytest.mark.parametrize("model", [*KINDS[:3], pytest.param({"layers": 0}, id="vad-closed-form")])
def test_packed_equals_alone_bit_for_bit_by_kernels(model: dict[str, Any], iris: IncompleteDataset) -> None:
    """Kernels train one member after the other."""
    configs = [trial_config(model={**model, "log_var": -3.0 + i}, train={"kl_weight": 0.05 * i}) for i in range(5)]
    packed = trained_together(configs, iris.train)
    for config, state in zip(configs, packed.states(), strict=True):
        alone = trained(config, iris.train).states()[0]
        for name in set(alone) - {"progress"}:
            assert torch.equal(state[name], alone[name]), name


def test_bf16_trains_as_well_and_packs_as_float32_does(iris: IncompleteDataset) -> None:
    ends = {}
    for precision in ("float32", "bf16"):
        configs = [
            trial_config(
                model={"layers": 2, "hidden": 32}, train={"epochs": 60, "precision": precision, "kl_weight": weight}
            )
            for weight in (0.05, 0.1, 0.2)
        ]
        packed = trained_together(configs, iris.train, epochs=60)
        scores = [evaluation.scores for evaluation in evaluate(packed, iris.search_data)]
        alone = trained(configs[1], iris.train, epochs=60)
        assert packed.states()[1]["weights"].dtype == torch.float32
        assert evaluate(alone, iris.search_data)[0].scores["val_missing_rmse"] == pytest.approx(
            scores[1]["val_missing_rmse"], rel=1e-3
        )
        ends[precision] = scores
    for exact, rounded in zip(ends["float32"], ends["bf16"], strict=True):
        assert rounded["train_loss"] != exact["train_loss"]
        assert rounded["train_loss"] == pytest.approx(exact["train_loss"], rel=0.05)
        assert rounded["val_missing_rmse"] == pytest.approx(exact["val_missing_rmse"], rel=0.05)


@pytest.mark.parametrize("section", [{"precision": "bf16"}, {"compile": "on"}])
def test_what_is_computed_in_other_ways_cannot_share_a_population(
    section: dict[str, str], iris: IncompleteDataset
) -> None:
    with pytest.raises(ConfigError, match="equal architecture"):
        Population([trial_config(), trial_config(train=section)], iris.train)


@pytest.mark.parametrize("activation", ["relu", "silu"])  # with and without a kernel
def test_on_a_cpu_compile_on_means_auto(
    activation: str, iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, by_kernel = native_epoch.train_epoch, set()

    def recorded(family: Any, config: TrialConfig, *args: Any) -> tuple[float, float, float]:
        by_kernel.add(config.train.compile)
        return kernel(family, config, *args)

    monkeypatch.setattr(native_epoch, "train_epoch", recorded)
    model = {"activation": activation}
    on, auto = (trained(trial_config(model=model, train={"compile": how}), iris.train) for how in ("on", "auto"))
    assert_same_state(on, auto)
    assert by_kernel == ({"on", "auto"} if activation == "relu" else set())


def apart(index: int, model: dict[str, Any], **train: Any) -> TrialConfig:
    rates = {"kl_weight": 0.02 + 0.1 * index, "net_lr": 1e-3 * (index + 1), "latent_lr": 0.02 * (index + 1)}
    return trial_config(model={**model, "log_var": -1.0 - index, **own_dropout(model, index)}, train={**rates, **train})


def number_of(member: Member) -> int:
    return round((member.config.train.kl_weight - 0.02) / 0.1)


@pytest.mark.parametrize("mixed", [False, True], ids=["groups", "mixed"])
@pytest.mark.parametrize("model", [KINDS[0], KINDS[3], *KINDS[6:8], KINDS[10]])
@settings(max_examples=5, deadline=None)
@given(moves=st.lists(st.tuples(st.sampled_from(["join", "leave", "return"]), st.integers(0, 9)), max_size=8))
def test_neighbours_that_come_and_go_never_matter(
    model: dict[str, Any], mixed: bool, iris: IncompleteDataset, moves: list[tuple[str, int]]
) -> None:
    """Whoever joins, leaves and comes back from a saved state, every member ends where it ends alone."""

    def configured(index: int) -> TrialConfig:  # machine code trains one member after the other, so nothing mixed
        return apart(index, model, compile="off" if mixed else "auto")

    population = Population([configured(0)], iris.train)
    population._mixed = mixed
    saved: dict[int, dict[str, torch.Tensor]] = {}
    done: dict[int, dict[str, torch.Tensor]] = {}

    def take(member: Member) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in population.state(member).items()}

    for index, (move, choice) in enumerate([*moves, *[("train", 0)] * 8], start=1):
        if move == "join":
            population.join(configured(index))
        elif move == "return" and saved:
            number, state = saved.popitem()
            population.join(configured(number), state)
        elif move == "leave" and len(population.members) > 1:
            member = population.members[choice % len(population.members)]
            saved[number_of(member)] = take(member)
            population.leave(member)
        if all(member.epoch < 4 for member in population.members):
            population.train_epoch()
        for member in [member for member in population.members if member.epoch == 4]:
            done[number_of(member)] = take(member)
            if len(population.members) > 1:
                population.leave(member)
    assert done
    for number, state in done.items():
        alone = trained(configured(number), iris.train).states()[0]
        for name in ("weights", "rows", "train_loss"):
            torch.testing.assert_close(state[name], alone[name], rtol=1e-3, atol=1e-4)


def test_a_member_that_diverges_harms_no_other(iris: IncompleteDataset) -> None:
    population = Population([trial_config(), trial_config(train={"net_lr": 1e30})], iris.train)
    for _ in range(4):
        population.train_epoch()
    good, bad = population.members
    assert bad.divergence() is not None
    assert good.divergence() is None
    alone = trained(trial_config(), iris.train)
    torch.testing.assert_close(population.states()[0]["weights"], alone.states()[0]["weights"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", KINDS)
def test_resuming_from_a_state_changes_nothing(model: dict[str, Any], iris: IncompleteDataset) -> None:
    config = trial_config(model=model)
    whole = trained(config, iris.train)
    state = {name: tensor.clone() for name, tensor in trained(config, iris.train, epochs=2).states()[0].items()}
    resumed = Population([config], iris.train)
    resumed.load_states([state])
    assert resumed.epoch == 2
    resumed.train_until(4)
    assert_same_state(whole, resumed)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_optimiser_and_schedule_packs_and_resumes(
    optimiser: str, schedule: str, iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plateau, "PATIENCE", 0)
    shared = {"optimiser": optimiser, "schedule": schedule, "epochs": 20}
    configs = [trial_config(train={**shared, "net_lr": lr, "weight_decay": lr}) for lr in (1e-3, 0.05, 0.3)]
    packed = Population(configs, iris.train)
    packed.train_until(7)
    state = {name: tensor.clone() for name, tensor in packed.states()[2].items()}
    packed.train_until(14)
    for i, config in enumerate(configs):
        alone = trained(config, iris.train, epochs=14).states()[0]
        assert set(alone) == set(packed.states()[i])
        for name in ("weights", "rows"):
            torch.testing.assert_close(packed.states()[i][name], alone[name], rtol=1e-4, atol=1e-5)
    resumed = Population(configs[2:], iris.train)
    resumed.load_states([state])
    resumed.train_until(14)
    for name in set(state) - {"progress"}:
        torch.testing.assert_close(resumed.states()[0][name], packed.states()[2][name], rtol=1e-4, atol=1e-5)
    if schedule == "plateau":
        assert resumed.members[0].plateau.factor < 1


def test_plateaus_are_each_members_own(iris: IncompleteDataset) -> None:
    still, moving = (
        trial_config(train={"schedule": "plateau", "epochs": 15, "net_lr": lr, "latent_lr": lr}) for lr in (1e-12, 1e-2)
    )
    population = Population([still, moving], iris.train)
    population.train_until(15)
    first, second = (member.plateau for member in population.members)
    assert first.factor < 1
    assert second.factor == 1


def test_a_state_without_what_the_plateau_has_seen_is_refused(iris: IncompleteDataset) -> None:
    states = trained(trial_config(), iris.train, epochs=1).states()
    with pytest.raises(ConfigError, match="plateau of shape"):
        Population([trial_config(train={"schedule": "plateau"})], iris.train).load_states(states)


def test_dropout_leaves_out_as_many_units_as_it_says(iris: IncompleteDataset) -> None:
    configs = [trial_config(model={"hidden": 50, "layers": 2, "dropout": rate}) for rate in (0.0, 0.3)]
    rows = TrainRows(iris.train, torch.device("cpu"))
    epoch = Epoch(rows, configs, [3, 3], SCHEDULES["cosine"], [1.0, 1.0])
    factors = [batch.dropout for batch in epoch.batches()]
    assert all(len(layers) == 2 for layers in factors)
    for layer in range(2):
        of_rows = torch.cat([layers[layer] for layers in factors], dim=1)
        assert of_rows.shape == (2, rows.n, 50)
        assert (of_rows[0] == 1).all()
        assert (of_rows[1] == 0).float().mean() == pytest.approx(0.3, abs=0.03)
        torch.testing.assert_close(of_rows[1].max(), torch.tensor(1 / 0.7))
    assert not torch.equal(factors[0][0][1], factors[0][1][1])
    without = Epoch(rows, configs[:1], [3], SCHEDULES["cosine"], [1.0])
    assert all(batch.dropout is None for batch in without.batches())


def test_a_neighbours_dropout_changes_no_bit(iris: IncompleteDataset) -> None:
    configs = [trial_config(model={"dropout": rate}) for rate in (0.0, 0.3)]
    beside = trained_together(configs, iris.train)
    without = trained_together([configs[0], configs[0]], iris.train)
    for name in ("weights", "rows"):
        assert torch.equal(beside.states()[0][name], without.states()[0][name])
        assert not torch.equal(beside.states()[1][name], without.states()[1][name])


def test_a_state_of_another_architecture_is_refused(iris: IncompleteDataset) -> None:
    state = trained(trial_config(), iris.train, epochs=1).states()
    with pytest.raises(ConfigError, match="weights of shape"):
        Population([trial_config(model={"hidden": 9})], iris.train).load_states(state)


def test_every_row_is_visited_once_an_epoch_and_the_last_partial_batch_is_used(iris: IncompleteDataset) -> None:
    assert len(iris.train.x) % 32 != 0
    population = Population([trial_config()], iris.train)
    before = population.states()[0]["rows"].clone()
    population.train_until(1)
    moved = (population.states()[0]["rows"] != before).any(-1)
    assert moved.all()
    assert (population.states()[0]["row_moments"][1] > 0).any(-1).all()


def test_a_batch_larger_than_the_data_is_the_data(iris: IncompleteDataset) -> None:
    large = trained(trial_config(train={"batch_size": 10_000}), iris.train)
    exact = trained(trial_config(train={"batch_size": len(iris.train.x)}), iris.train)
    assert_same_state(large, exact)


@pytest.mark.parametrize("model", EQUAL_NOISE)
def test_reported_loss_is_the_documented_one(model: dict[str, Any], iris: IncompleteDataset) -> None:
    """train_loss = train_reconstruction + kl_weight · train_kl · rows / observed cells."""
    population = trained(trial_config(model=model, train={"kl_weight": 0.3}), iris.train)
    values = population.members[0].metrics
    rows, cells = len(iris.train.x), iris.train.mask.sum()
    expected = values["train_reconstruction"] + 0.3 * values["train_kl"] * rows / cells
    assert values["train_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_noise_that_does_not_move_is_the_fixed_one(family: str, iris: IncompleteDataset) -> None:
    """With a learning rate too small to be felt both noises give the same numbers."""
    still = {"net_lr": 1e-12, "weight_decay": 0.0}
    fixed, learned = (
        trained(trial_config(model={"family": family, "noise": noise}, train=still), iris.train)
        for noise in ("fixed", "learned")
    )
    torch.testing.assert_close(learned.states()[0]["rows"], fixed.states()[0]["rows"], rtol=1e-4, atol=1e-5)
    assert learned.members[0].metrics == pytest.approx(fixed.members[0].metrics, rel=1e-5)
    assert evaluate(learned, iris.search_data)[0].scores["val_missing_rmse"] == pytest.approx(
        evaluate(fixed, iris.search_data)[0].scores["val_missing_rmse"], rel=1e-4
    )


def test_learned_noise_tells_which_column_is_noisy(iris: IncompleteDataset) -> None:
    """One column is nothing but noise: its variance grows beyond the others', whose geometric mean with it is 1."""
    x = iris.train.x.copy()
    x[:, 1] = np.random.default_rng(0).standard_normal(len(x))
    noisy = MaskedRows(np.where(iris.train.mask, x, np.float32("nan")), iris.train.mask)
    config = trial_config(
        model={"noise": "learned", "latent": 1}, train={"epochs": 60, "net_lr": 1e-2, "kl_weight": 0.3}
    )
    population = trained(config, noisy, epochs=60)
    log_noise = population.family.obs_log_var(population.family.layers(population._tensors["weights"]))
    assert log_noise is not None
    torch.testing.assert_close(log_noise.sum(), torch.tensor(0.0), rtol=0, atol=1e-5)
    assert int(log_noise.argmax()) == 1
    assert log_noise.max() > 0.5
    metrics = population.members[0].metrics
    assert metrics["train_loss"] != pytest.approx(
        metrics["train_reconstruction"] + 0.3 * metrics["train_kl"] * len(x) / iris.train.mask.sum(), rel=1e-3
    )


@pytest.mark.slow
def test_the_defaults_of_the_published_code_score_as_they_do_there() -> None:
    """Its dense Adam goes on moving rows between their batches: further by the root of the batches of an epoch."""
    pace = 1e-3 * math.sqrt(40)
    config = trial_config(
        data={"source": "digits", "missing": {"ratio": 0.5}},
        model={"latent": 50, "hidden": 100, "layers": 2, "posterior": "fixed", "log_var": -14.0},
        train={
            **{"epochs": 500, "batch_size": 32, "kl_weight": 0.0, "weight_decay": 0.0, "latent_init": "normal"},
            **{"optimiser": "adam", "schedule": "constant", "net_lr": 1e-3, "latent_lr": pace},
        },
        infer={"steps": 500, "lr": 1e-3, "start": "zeros"},
    )
    data = load_dataset(config.data)
    population = trained(config, data.train, epochs=500)
    assert population.members[0].metrics["train_reconstruction"] < 1e-3, (
        "without a prior it learns train cells by heart"
    )
    part = data.test_part(0.5, 0)
    x_hat = population.models()[0].reconstruct(part)
    assert score(x_hat, data.test_truth, ~part.mask).rmse == pytest.approx(0.238, abs=0.03)


def test_a_diverged_configuration_says_so(iris: IncompleteDataset) -> None:
    population = Population([trial_config(train={"net_lr": 1e30})], iris.train)
    with pytest.raises(TrialDiverged, match=r"diverged: train_\w+ became NaN or infinite in epoch \d"):
        population.train_until(4)


def test_configurations_of_different_shape_cannot_share_a_population(iris: IncompleteDataset) -> None:
    with pytest.raises(ConfigError, match="equal architecture"):
        Population([trial_config(), trial_config(model={"latent": 3})], iris.train)


def test_evaluation_reports_every_metric_of_the_list(iris: IncompleteDataset) -> None:
    ((scores, held_out, _),) = evaluate(trained(trial_config(), iris.train), iris.search_data)
    assert set(scores) == set(REPORTED_METRICS)
    assert all(math.isfinite(value) for value in scores.values())
    rmse = np.sqrt(np.mean((held_out - iris.search_data.validation.values.astype(np.float64)) ** 2))
    assert scores["val_missing_rmse"] == pytest.approx(rmse, rel=1e-6)


def test_a_report_may_start_from_the_posteriors_of_the_last(iris: IncompleteDataset) -> None:
    config = trial_config(train={"epochs": 30}, infer={"steps": 100})
    population = trained(config, iris.train, 20)
    (last,) = evaluate(population, iris.search_data)
    rows = len(iris.search_data.validation.visible.x)
    assert last.posteriors.shape == (rows, 2 * config.model.latent)
    population.train_until(21)
    exact = infer(population.models(), iris.search_data.validation.visible).posterior_params[0]
    (near,) = evaluate(population, iris.search_data, start=[last.posteriors])
    (far,) = evaluate(population, iris.search_data, start=[last.posteriors + 3.0])
    assert (near.posteriors - exact).abs().mean() < 0.5 * (far.posteriors - exact).abs().mean()
    population.train_until(30)  # what is finished is inferred as new rows are
    one, other = (evaluate(population, iris.search_data, start=[start])[0] for start in (None, last.posteriors + 3.0))
    np.testing.assert_array_equal(one.held_out, other.held_out)


@pytest.mark.parametrize(
    ("epoch", "rows", "share"),
    [(1, 3_000, 0.1), (10, 30_000, 0.1), (10, 3_000, 0.3), (10, 10_000, 0.15), (30, 10**9, 1.0)],
)
def test_a_score_takes_at_most_as_long_as_the_training_it_judges(epoch: int, rows: int, share: float) -> None:
    member = Member(trial_config(train={"epochs": 30}, infer={"steps": 100}), epoch=epoch)
    assert scoring._effort(member, 10_000, rows) == pytest.approx(share)


def test_models_of_many_rows_keep_the_latents_of_a_sample(
    iris: IncompleteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    population = trained(trial_config(), iris.train)
    (whole,) = population.models()
    monkeypatch.setattr(population_module, "MOST_LATENTS", 20)
    (some,) = population.models()
    kept = sample_rows(len(iris.train.x), 20)
    assert len(kept) == 20
    assert torch.equal(some.latents, whole.latents[kept])
    assert population.states()[0]["rows"].shape[0] == len(iris.train.x)
    np.testing.assert_allclose(some.reconstruct_train(4), whole.reconstruct_train(4)[kept], rtol=1e-5, atol=1e-6)


def test_train_rows_that_cannot_be_written_to_are_shared(iris: IncompleteDataset) -> None:
    x = iris.train.x.copy()
    x.setflags(write=False)
    rows = TrainRows(MaskedRows(x, iris.train.mask), torch.device("cpu"))
    assert np.shares_memory(rows.values.numpy(), x)
    trained(trial_config(), MaskedRows(x, iris.train.mask))
    np.testing.assert_array_equal(x, iris.train.x)
    given, mask = rows.of_rows(torch.tensor([[2, 0], [1, 1]]))
    assert given.shape == mask.shape == (2, 2, 4)
    np.testing.assert_array_equal(given[0, 1], np.nan_to_num(x[0]))
    np.testing.assert_array_equal(mask[0, 0], iris.train.mask[2])


@pytest.mark.parametrize(("last", "shortly"), [(0, []), (9, []), (10, [11]), (25, [26, 27]), (100, range(101, 111))])
def test_what_follows_shortly(last: int, shortly: Sequence[int]) -> None:
    assert [epoch for epoch in range(1, 250) if follows_shortly(epoch, last)] == list(shortly)


def test_hidden_held_out_cells_change_the_score_alone(iris: IncompleteDataset) -> None:
    population = trained(trial_config(), iris.train)
    data = iris.search_data
    _, truth, cells = data.validation
    shifted = data._replace(validation=data.validation._replace(truth=np.where(cells, truth + 1, truth)))
    (one,), (other,) = evaluate(population, data), evaluate(population, shifted)
    np.testing.assert_array_equal(one.held_out, other.held_out)
    assert one.scores["val_observed_rmse"] == other.scores["val_observed_rmse"]
    assert one.scores["val_missing_rmse"] != other.scores["val_missing_rmse"]


def test_truth_of_test_cells_changes_nothing_but_test_scores(iris: IncompleteDataset) -> None:
    hidden = ~iris.test_mask(0.3, 0)
    other = dataclasses.replace(iris, test_truth=np.where(hidden, 1e6, iris.test_truth).astype(np.float32))
    (model,) = trained(trial_config(), iris.train).models()
    part = iris.test_part(0.3, 0)
    np.testing.assert_array_equal(model.reconstruct(part), model.reconstruct(other.test_part(0.3, 0)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", KINDS)
def test_a_gpu_trains_the_same_model(model: dict[str, str], iris: IncompleteDataset) -> None:
    config = trial_config(model=model)
    population = Population([config, trial_config(model=model, train={"kl_weight": 0.3})], iris.train, "cuda")
    population.join(trial_config(model=model, train={"kl_weight": 0.2}))
    population.train_until(4)
    alone = trained(config, iris.train).states()[0]
    (state,) = (s for m, s in zip(population.members, population.states(), strict=True) if m.config == config)
    for name in ("weights", "rows"):
        torch.testing.assert_close(state[name].cpu(), alone[name], rtol=1e-2, atol=1e-3)
