"""Training of a population: p configurations of one architecture at once; p = 1 is the ordinary case.

A member's result does not depend on the other members. All random numbers are shared and derived: the batch order, the
draws and the initial weights come from generators seeded by (seed, purpose, epoch), so a configuration's result is the
same alone or packed, whenever others join or leave, and a checkpoint needs no generator state to resume exactly.

Shape comments: p members, n rows, d features, k latent dims, s posterior parameters, M network parameters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import torch

from vadtune.config import TrialConfig
from vadtune.core.errors import ConfigError, TrialDiverged
from vadtune.core.randomness import Purpose, derived_generator
from vadtune.core.sampling import sample_rows
from vadtune.data import MaskedRows
from vadtune.models import Architecture, build_family
from vadtune.models.linear_em import regression
from vadtune.training.inference import MOST_LATENTS, FittedModel
from vadtune.training.member import Member, State, signature
from vadtune.training.optimiser import Plateau
from vadtune.training.stack import Stack
from vadtune.training.train_rows import TrainRows

_START_NOISE = 0.01  # scale of the random part of regression weights: weights that start at 0 would stay 0
_TENSORS = ("weights", "weight_moments", "rows", "row_moments")
_CACHE_BYTES = 6 * 2**20  # cache of a CPU core: members beyond it are trained one group after the other


class Population:
    """P configurations of one architecture in training on the same rows.

    Args:
        configs: The configurations. They may differ in everything that does not change shapes, batches or the seed.
        train: The train rows, which must not change while the population exists.
        device: Where to train.

    Attributes:
        members: The members, in stacking order.
        family: The family they train as.

    Raises:
        ConfigError: The configurations cannot share a population.
    """

    def __init__(self, configs: Sequence[TrialConfig], train: MaskedRows, device: str = "cpu") -> None:
        first = configs[0]
        self.device = torch.device(device)
        self._features = train.x.shape[1]
        self._signature = signature(first, self._features)
        self._seed = first.train.seed
        self._schedule_name = first.train.schedule
        self.family = build_family(Architecture.of(first.model, self._features))
        bf16 = first.train.precision == "bf16"
        self.family.networks = {name: replace(mlp, bf16=bf16) for name, mlp in self.family.networks.items()}
        # Members at different epochs see different batches. On a CPU such groups are trained one after the other, which
        # costs nothing; on a GPU together, with separate batches.
        self._mixed = self.device.type != "cpu"

        self._data = TrainRows(train, self.device)
        self._initial: dict[str, State] = {}
        self._stack([(Member(config), self._initial_state(config.train.latent_init)) for config in configs])

    def _initial_state(self, how: str) -> State:
        """Returns the state that training starts from with a ``train.latent_init``; cached."""
        if how not in self._initial:
            x, mask = self._data.values.cpu(), self._data.mask.cpu()
            weights = self.family.initial(derived_generator(self._seed, Purpose.WEIGHTS))  # (M,)
            rows = self.family.initial_rows(x, mask, how, derived_generator(self._seed, Purpose.ROWS))
            if self.family.architecture.closed_form:
                (decoder,) = self.family.layers(weights[None])["decoder"]
                weight, bias = regression(rows, x, mask)
                decoder.weight[0].mul_(_START_NOISE).add_(weight)
                decoder.bias[0, 0].copy_(bias)
            self._initial[how] = {"weights": weights, "rows": rows}
        weights, rows = self._initial[how]["weights"], self._initial[how]["rows"]
        moments = {"weight_moments": torch.zeros(2, *weights.shape), "row_moments": torch.zeros(2, *rows.shape)}
        return {"weights": weights, "rows": rows, **moments}

    def _stack(self, parts: list[tuple[Member, State]]) -> None:
        """Replaces the members; changes nothing if it fails, for lack of memory, say."""
        for member, _ in parts:
            found = signature(member.config, self._features)
            if found != self._signature:
                raise ConfigError(
                    "a population needs equal architecture, batches, optimiser, schedule, seed, precision, kind of "
                    f"inference, got {found} and {self._signature}; train them apart"
                )
        parts = sorted(parts, key=lambda part: (self._group_of(part[0]), part[0].epoch))
        members, states = [member for member, _ in parts], [state for _, state in parts]
        tensors = {
            name: torch.stack([state[name].to(self.device) for state in states], dim=int("moments" in name))
            for name in _TENSORS
        }
        self._stacked = Stack(self._data, members, self.family, tensors)
        self.members, self._tensors = members, tensors

    def _group_of(self, member: Member) -> tuple[int, bool]:
        return (0, False) if self._mixed else (member.epoch, member.config.model.dropout > 0)

    @property
    def epoch(self) -> int:
        """Number of epochs that every member has completed."""
        return min(member.epoch for member in self.members)

    def join(self, config: TrialConfig, state: State | None = None) -> Member:
        """Adds a configuration, from its start or from a state, without effect on the others; returns its member.

        Raises:
            ConfigError: It has another signature, or the state belongs to another configuration or dataset.
        """
        member = Member(config)
        state = self._initial_state(config.train.latent_init) if state is None else self._checked(member, state)
        self._stack([*zip(self.members, self.states(), strict=True), (member, state)])
        return member

    def leave(self, *members: Member) -> None:
        """Removes members without effect on the others. The last one cannot leave."""
        self._stack([part for part in zip(self.members, self.states(), strict=True) if part[0] not in members])

    def has_room_for(self, config: TrialConfig) -> bool:
        """Returns whether a configuration may join."""
        return signature(config, self._features) == self._signature

    def train_until(self, epoch: int) -> None:
        """Trains up to and including this epoch.

        Raises:
            TrialDiverged: A member's loss became NaN or infinite.
        """
        while self.epoch < epoch:
            self.train_epoch()
            for member in self.members:
                if reason := member.divergence():
                    raise TrialDiverged(reason)

    def train_epoch(self) -> None:
        """Trains every member for one epoch; a member that diverges does not affect the others."""
        for members in self._groups():
            start = time.perf_counter()
            group = self.members[members]
            weights = [member.config.train.kl_weight for member in group]
            epoch_sums = self._stacked.train_epoch(members)
            seconds = (time.perf_counter() - start) / len(group)
            for member, weight, sums in zip(group, weights, epoch_sums, strict=True):
                member.epoch += 1
                member.train_seconds += seconds
                if sums is None:  # converged: nothing changed
                    continue
                error, weighted, divergence = sums
                member.metrics = {
                    "train_loss": (weighted + weight * divergence) / self._data.cells,
                    "train_reconstruction": error / self._data.cells,
                    "train_kl": divergence / self._data.n,
                }
                if self._schedule_name == "plateau" and not self.family.architecture.closed_form:
                    member.plateau.update(member.metrics["train_loss"])

    def _groups(self) -> Iterator[slice]:
        """Yields the members to train together; on a CPU those of one ``_group_of``, as many as fit in the cache."""
        if self._mixed:
            yield slice(0, len(self.members))
            return
        largest, start = max(1, _CACHE_BYTES // (16 * self._tensors["weights"].shape[1])), 0
        for _, group in groupby(self.members, key=self._group_of):
            end = start + len(list(group))
            yield from (slice(first, min(first + largest, end)) for first in range(start, end, largest))
            start = end

    @torch.no_grad()
    def models(self, members: Sequence[Member] | None = None) -> list[FittedModel]:
        """Returns the current models of all members, or of some; copies, which later training does not change.

        Of more than ``inference.MOST_LATENTS`` rows they keep a sample of the latents.
        """
        chosen = [self.members.index(member) for member in (self.members if members is None else members)]
        kept = torch.from_numpy(sample_rows(self._data.n, MOST_LATENTS)).to(self.device)
        if self.family.amortised:
            networks = self.family.layers(self._tensors["weights"])
            encoded, _ = self.family.encode(networks, *self._data.of_rows(kept))
            latents = [encoded[i] for i in chosen]
        else:
            latents = [self._tensors["rows"][i][kept] for i in chosen]
        return [
            FittedModel(self.members[i].config, self._tensors["weights"][i].clone(), rows)
            for i, rows in zip(chosen, latents, strict=True)
        ]

    def states(self) -> list[State]:
        """Returns the members' states; views that later training changes, so copy what must stay."""
        return [self.state(member) for member in self.members]

    def state(self, member: Member) -> State:
        """Returns one member's state; see ``states``."""
        return {
            **self._tensors_of(self.members.index(member)),
            "progress": torch.tensor([member.epoch, member.train_seconds], dtype=torch.float64),
            **{name: torch.tensor(value, dtype=torch.float64) for name, value in member.metrics.items()},
            **({"plateau": member.plateau.to_tensor()} if self._schedule_name == "plateau" else {}),
        }

    def _tensors_of(self, i: int) -> State:
        """Returns the tensors of the i-th member's state."""
        return {name: tensor[:, i] if "moments" in name else tensor[i] for name, tensor in self._tensors.items()}

    def load_states(self, states: Sequence[State]) -> None:
        """Resumes from states, one for each member in the order of ``members``.

        Raises:
            ConfigError: A state belongs to another architecture or other rows.
        """
        members = [Member(member.config) for member in self.members]
        self._stack([(m, self._checked(m, state)) for m, state in zip(members, states, strict=True)])

    def _checked(self, member: Member, state: State) -> State:
        """Checks a state, sets the member's progress from it and returns its tensors."""
        n = self._data.n
        plateau = self._schedule_name == "plateau"
        weights, rows = (self.family.n_parameters,), (n, self.family.row_parameters)
        shapes = dict(zip(_TENSORS, (weights, (2, *weights), rows, (2, *rows)), strict=True))
        for name, shape in {**shapes, **({"plateau": (3,)} if plateau else {})}.items():
            if name not in state or state[name].shape != shape:
                got = tuple(state[name].shape) if name in state else "nothing"
                raise ConfigError(
                    f"a training state needs {name} of shape {shape}, got {got}; "
                    "it was taken from another configuration or dataset"
                )
        epoch, member.train_seconds = state["progress"].tolist()
        member.epoch = int(epoch)
        member.metrics = {name: float(state[name]) for name in state if name.startswith("train_")}
        if plateau:
            member.plateau = Plateau(*state["plateau"].tolist())
        return {name: state[name] for name in _TENSORS}
