"""Configurations of different widths and activations in one population: padded, exactly."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import trial_config
from vadtune.config import TrialConfig
from vadtune.core.errors import ConfigError
from vadtune.data import IncompleteDataset
from vadtune.models.networks import ACTIVATIONS
from vadtune.training.member import Member, State
from vadtune.training.optimiser import OPTIMISERS, SCHEDULES
from vadtune.training.population import Population
from vadtune.training.scoring import evaluate

WIDTHS = [(1, 3), (3, 8), (2, 5), (3, 3), (4, 11)]  # latent, hidden
KINDS = {
    **{posterior: {"posterior": posterior} for posterior in ("learned", "fixed", "none")},
    **{activation: {"activation": activation, "layers": 2} for activation in ACTIVATIONS},
    "skip": {"skip": True},
    "noise": {"noise": "learned"},
    "dropout": {"dropout": 0.3, "layers": 2},
    "dressed": {"layers": 2, "activation": "silu", "noise": "learned", "dropout": 0.2, "head": "projection"},
    "linear-fixed": {"layers": 0, "posterior": "fixed"},
    "normalised": {"layer_norm": True},
    # A list of activations: each configuration has one of its own.
    "activations": {"activation": ["relu", "tanh", "linear"], "layers": 2},
    "all-activations": {"activation": [*ACTIVATIONS], "layers": 2, "skip": True, "dropout": 0.3},
    "normalised-activations": {"activation": [*ACTIVATIONS], "layer_norm": True},
}
TENSORS = ("weights", "weight_moments", "rows", "row_moments")


def narrow(index: int, model: dict[str, Any], **train: Any) -> TrialConfig:
    """Returns a configuration of its own widths, activation and settings; under a layer norm all are equally wide."""
    latent, hidden = WIDTHS[index % len(WIDTHS)]
    own = {"latent": latent, "hidden": 8 if "layer_norm" in model else hidden, "log_var": -1.0 - index}
    if "dropout" in model:
        own["dropout"] = 0.15 * (index % 4)
    if isinstance(activations := model.get("activation"), list):
        own["activation"] = activations[index % len(activations)]
    rates = {"net_lr": 1e-3 * (index + 1), "latent_lr": 0.02 * (index + 1), "weight_decay": 0.1 * (index % 3)}
    # Without machine code, which knows no padding: what is compared is one way to compute.
    train = {"kl_weight": 0.02 + 0.1 * index, "compile": "off", **rates, **train}
    return trial_config(model={**model, **own}, train=train)


def number_of(member: Member) -> int:
    return round((member.config.train.kl_weight - 0.02) / 0.1)


def alone(config: TrialConfig, data: IncompleteDataset, epochs: int) -> Population:
    population = Population([config], data.train)
    population.train_until(epochs)
    return population


def taken(population: Population, member: Member) -> State:
    return {name: tensor.clone() for name, tensor in population.state(member).items()}


def assert_close(one: State, other: State, names: tuple[str, ...] = (*TENSORS, "train_loss", "train_kl")) -> None:
    for name in names:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_unit_without_weights_gives_nothing(name: str) -> None:
    assert ACTIVATIONS[name].forward(torch.zeros(1)) == 0


# Members at different epochs, with what has draws or activations of its own.
PADDED = [(kind, False) for kind in KINDS] + [
    (kind, True) for kind in ("learned", "noise", "dressed", "all-activations")
]


@pytest.mark.parametrize(("kind", "mixed"), PADDED)
def test_padded_equals_alone(kind: str, mixed: bool, iris: IncompleteDataset) -> None:
    configs = [narrow(index, KINDS[kind], epochs=20) for index in range(4)]
    population = Population(configs, iris.train, pad=True)
    population._mixed = mixed
    population.train_until(6)
    late = population.join(narrow(4, KINDS[kind], epochs=20))
    population.train_until(6)
    scores = {
        member: found.scores
        for member, found in zip(population.members, evaluate(population, iris.search_data), strict=True)
    }
    assert late in scores
    for member in population.members:
        own = alone(member.config, iris, member.epoch)
        assert_close(population.state(member), own.states()[0])
        (model,), (own_model,) = population.models([member]), own.models()
        torch.testing.assert_close(model.weights, own_model.weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.latents, own_model.latents, rtol=1e-4, atol=1e-5)
        for name, value in evaluate(own, iris.search_data)[0].scores.items():
            if not name.endswith("seconds"):
                assert scores[member][name] == pytest.approx(value, rel=1e-3), name


@pytest.mark.parametrize(("optimiser", "schedule"), [*zip(OPTIMISERS, SCHEDULES, strict=True)])
def test_padding_stays_nothing(optimiser: str, schedule: str, iris: IncompleteDataset) -> None:
    """Bit for bit, with its moments, whatever the optimiser; and each optimiser trains as it does alone."""
    model = {"layers": 2, "activation": [*ACTIVATIONS]}
    configs = [narrow(index, model, optimiser=optimiser, schedule=schedule, epochs=6) for index in range(5)]
    population = Population(configs, iris.train, pad=True)
    population.train_until(6)
    stacks = {"weights": population._tensors["weights"], "rows": population._tensors["rows"]}
    stacks |= {
        "weight_moments": population._tensors["weight_moments"][0],
        "row_moments": population._tensors["row_moments"][0],
    }
    for i, member in enumerate(population.members):
        state, padding = population.state(member), population._paddings[i]
        assert_close(state, alone(member.config, iris, 6).states()[0])
        for name, stack in stacks.items():
            own = state[name][0] if "moments" in name else state[name]
            assert torch.equal(stack[i], own if padding is None else padding.of(name).pad(own))
            assert int(stack[i].count_nonzero()) == int(own.count_nonzero())
            if padding is not None and name == "weights":
                assert own.numel() < stack[i].numel()


@pytest.mark.parametrize("mixed", [False, True], ids=["groups", "mixed"])
@pytest.mark.parametrize("kind", ["learned", "dressed", "all-activations"])
@settings(max_examples=5, deadline=None)
@given(moves=st.lists(st.tuples(st.sampled_from(["join", "leave", "return"]), st.integers(0, 9)), max_size=8))
def test_neighbours_of_any_width_may_come_and_go(
    kind: str, mixed: bool, iris: IncompleteDataset, moves: list[tuple[str, int]]
) -> None:
    """The population grows and shrinks with its widest member; every member ends where it ends alone."""
    population = Population([narrow(0, KINDS[kind])], iris.train, pad=True)
    population._mixed = mixed
    saved: dict[int, State] = {}
    done: dict[int, State] = {}
    for index, (move, choice) in enumerate([*moves, *[("train", 0)] * 8], start=1):
        if move == "join":
            population.join(narrow(index, KINDS[kind]))
        elif move == "return" and saved:
            number, state = saved.popitem()
            population.join(narrow(number, KINDS[kind]), state)
        elif move == "leave" and len(population.members) > 1:
            member = population.members[choice % len(population.members)]
            saved[number_of(member)] = taken(population, member)
            population.leave(member)
        if all(member.epoch < 4 for member in population.members):
            population.train_epoch()
        ended = [member for member in population.members if member.epoch == 4]
        done |= {number_of(member): taken(population, member) for member in ended}
        population.leave(*ended[len(ended) == len(population.members) :])
    assert done
    for number, state in done.items():
        own = alone(narrow(number, KINDS[kind]), iris, 4).states()[0]
        for name in ("weights", "rows", "train_loss"):
            torch.testing.assert_close(state[name], own[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["learned", "all-activations"])
def test_states_leave_without_padding_and_go_on_anywhere(kind: str, iris: IncompleteDataset) -> None:
    """From a padded pack to none, from none to a padded pack, and to a pack of other widths and activations."""
    population = Population([narrow(index, KINDS[kind]) for index in range(3)], iris.train, pad=True)
    population.train_until(2)
    for member in population.members:
        config, state = member.config, taken(population, member)
        unpadded = alone(config, iris, 2).states()[0]
        assert {name: tensor.shape for name, tensor in state.items()} == {
            name: tensor.shape for name, tensor in unpadded.items()
        }
        ends = alone(config, iris, 4).states()[0]
        resumed = Population([config], iris.train)
        resumed.load_states([state])
        assert_close(resumed.states()[0], state)
        resumed.train_until(4)
        assert_close(resumed.states()[0], ends)
        other = Population([narrow(4, KINDS[kind]), config], iris.train, pad=True)
        other.load_states([unpadded if each.config == config else other.state(each) for each in other.members])
        other.train_until(2)  # which is two epochs for both
        (member,) = (each for each in other.members if each.config == config)
        assert_close(other.state(member), ends)


def test_a_padded_state_of_other_widths_is_refused(iris: IncompleteDataset) -> None:
    population = Population([narrow(0, {}), narrow(1, {})], iris.train, pad=True)
    with pytest.raises(ConfigError, match=r"weights of shape"):
        population.join(narrow(0, {}), population.states()[1])


@pytest.mark.parametrize(
    "model", [{"layers": 0}, {"family": "vae"}, {"layer_norm": True}], ids=["solved", "encoder", "layer-norm"]
)
def test_what_cannot_be_padded_trains_apart(model: dict[str, Any], iris: IncompleteDataset) -> None:
    widths = [{"latent": 2, "hidden": 8}, {"latent": 2, "hidden": 5} if model.get("layer_norm") else {"latent": 1}]
    one, other = (trial_config(model={**model, **width}) for width in widths)
    assert not Population([one], iris.train, pad=True).has_room_for(other)
    with pytest.raises(ConfigError, match="equal architecture"):
        Population([one, other], iris.train, pad=True)


@pytest.mark.parametrize("mixed", [False, True], ids=["groups", "mixed"])
def test_members_of_one_activation_stand_side_by_side(mixed: bool, iris: IncompleteDataset) -> None:
    """In every group that trains at once, so that an activation is one operation, whatever came and went."""
    population = Population([narrow(0, KINDS["all-activations"])], iris.train, pad=True)
    population._mixed = mixed
    for index in range(1, 12):
        population.join(narrow(index, KINDS["all-activations"]))
        population.leave(*population.members[: index % 4 == 3])
        population.train_epoch()
        for group in population._groups():
            names = [member.config.model.activation for member in population.members[group]]
            assert len([name for name, _ in groupby(names)]) == len(set(names))


def test_another_activation_needs_no_padding(iris: IncompleteDataset) -> None:
    one, other = (trial_config(model={"activation": activation}) for activation in ("relu", "gelu"))
    assert not Population([one], iris.train).has_room_for(other), "without padding"
    population = Population([one], iris.train, pad=True)
    assert population.has_room_for(other)
    population.join(other)
    assert population._paddings == [None, None]
    encoders = [trial_config(model={"family": "vae", "activation": activation}) for activation in ("relu", "gelu")]
    assert not Population(encoders[:1], iris.train, pad=True).has_room_for(encoders[1])


def test_padding_at_most_doubles_the_parameters(iris: IncompleteDataset) -> None:
    small, large = (trial_config(model={"latent": 2, "hidden": hidden}) for hidden in (8, 400))
    population = Population([large], iris.train, pad=True)
    assert not Population([large], iris.train).has_room_for(small), "without padding"
    assert population.has_room_for(small), "two are at most twice as large as the larger"
    population.join(small)
    assert not population.has_room_for(small)
    assert population.has_room_for(large)
    population.join(large)
    assert population.has_room_for(small)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", ["on", "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_pads_exactly(kind: str, compiled: str, iris: IncompleteDataset) -> None:
    configs = [narrow(index, KINDS[kind], compile=compiled) for index in range(4)]
    population = Population(configs, iris.train, "cuda", pad=True)
    population.train_until(2)
    population.join(narrow(4, KINDS[kind], compile=compiled))
    population.train_until(4)
    for member in population.members:
        if member.epoch == 4:
            own = alone(member.config, iris, 4).states()[0]
            state = {name: tensor.cpu() for name, tensor in population.state(member).items()}
            for name in ("weights", "rows", "train_loss"):
                torch.testing.assert_close(state[name], own[name], rtol=1e-2, atol=1e-3)
