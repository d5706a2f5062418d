"""Training: a Population trains P configurations of one architecture at once; P = 1 is the ordinary case.

Neighbours never matter. Randomness is common to all members and derived, never carried along: the batch order, the
noise and the initial weights come from generators seeded by (seed, purpose, epoch), so a configuration's result is the
same alone or packed, whenever its neighbours come and go, and a checkpoint needs no generator state to resume exactly.

Shape comments: p members, n rows, b batch rows, d features, k latent dimensions, s statistics, M network parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from vadtune import machine_code
from vadtune.batches import Batch, Epoch
from vadtune.compiled import Passes, decoder_passes
from vadtune.config import TrialConfig
from vadtune.data import Part
from vadtune.errors import ConfigError, TrialDiverged
from vadtune.inference import FittedModel
from vadtune.model import Architecture, Family, Networks, build_family
from vadtune.model.linear import NotSolved, iterate, regression
from vadtune.model.networks import Workspace, side_by_side
from vadtune.model.noise import log_variance_backward
from vadtune.model.objective import draw, kl_divergence, noise_gradient, posterior_gradients
from vadtune.model.padding import Padding, agreement, widest
from vadtune.optimiser import OPTIMISERS, ROW_OPTIMISERS, SCHEDULES, Plateau
from vadtune.randomness import Purpose, derived_generator

State = dict[str, Tensor]
"""All that resuming one member needs: weights (M,), weight_moments (2, M), rows (n, s), row_moments (2, n, s),
progress (epoch, seconds), the sums of the last epoch, and what the schedule plateau has seen, as plateau (3,)."""

_START_NOISE = 0.01  # of weights that are not drawn at random: what starts as nothing would stay so
# Below either, a solved model has settled: the change of an iteration, in units of the greatest weight; what the loss
# changes, in units of kl_weight, which makes it nats for each observed cell. Of what still moves then (the noise of a
# column that is all but solved, say) the held-out cells know nothing: digits moved by .0003 of .2 in 200 iterations.
_SETTLED, _SETTLED_LOSS = 1e-3, 5e-5
_TENSORS = ("weights", "weight_moments", "rows", "row_moments")
_MOST_PADDED = 2  # parameters of a population with its padding, in units of those its members have
_CACHE_BYTES = 6 * 2**20  # what a CPU core keeps near: members beyond it are trained one group after the other


class _Sums(NamedTuple):
    """Of an epoch, (p,) each."""

    squared_error: Tensor
    weighted: Tensor  # the squared error in units of the features' noise, and what its log variances cost
    kl: Tensor  # nats


@dataclass(eq=False)
class Member:
    """One configuration in training; equal to none but itself.

    Attributes:
        config: The configuration.
        epoch: Number of completed epochs.
        train_seconds: Time spent training so far, shared evenly by the members trained together.
        metrics: Sums of the last epoch: train_loss, train_reconstruction (squared error per observed cell, whatever the
            noise), train_kl (nats per row).
        plateau: What the schedule plateau has seen; untouched by others.
    """

    config: TrialConfig
    epoch: int = 0
    train_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    plateau: Plateau = field(default_factory=Plateau)

    def divergence(self) -> str | None:
        """Returns why the member cannot go on, None if it can."""
        for name, value in self.metrics.items():
            if value != value or abs(value) == float("inf"):
                return f"diverged: {name} became NaN or infinite in epoch {self.epoch}"
        return None


def signature(config: TrialConfig, features: int, *, pad: bool = False) -> tuple[object, ...]:
    """Returns what configurations must share to be one population: shapes (with ``pad``, those that padding does not
    make equal) and activation (not with ``pad``), batches, optimiser, seed, precision, inference."""
    train = config.train
    shared = train.epochs, train.batch_size, train.optimiser, train.schedule, train.seed, train.precision, train.compile
    how = config.infer.steps, config.infer.start, config.infer.prior
    architecture = Architecture.of(config.model, features)
    return (*(agreement(architecture) if pad else architecture), *shared, *how)


class Population:
    """P configurations of one architecture in training on the same rows.

    Args:
        configs: The configurations. They may differ in whatever does not change shapes, the batches or the seed.
        train: The train rows; copied.
        device: Where to train.
        pad: Whether configurations may differ in their widths and activations; all are then as wide as the widest
            (model/padding.py), and those of one activation side by side. States and models that are given out, or taken
            in, are of each member's own widths.

    Attributes:
        members: The configurations and how far they are, in the order they are stacked in.
        family: The model they train as; where activations differ, with that of the first.

    Raises:
        ConfigError: The configurations cannot share a population.
    """

    def __init__(self, configs: Sequence[TrialConfig], train: Part, device: str = "cpu", *, pad: bool = False) -> None:
        first = configs[0]
        self.device, self._pad = torch.device(device), pad
        self._features = train.x.shape[1]
        self._signature = signature(first, self._features, pad=pad)
        self._seed = first.train.seed
        self._optimiser_name, self._schedule_name = first.train.optimiser, first.train.schedule
        self._bf16 = first.train.precision == "bf16"
        # Members at different epochs see different batches. On a CPU they are trained one group after the other, which
        # costs nothing; elsewhere together, each with batches of its own.
        self._mixed = self.device.type != "cpu"

        mask = torch.tensor(train.mask)
        self._x = torch.tensor(train.x).masked_fill_(~mask, 0.0).to(self.device)  # (n, d)
        self._mask = mask.float().to(self.device)  # (n, d)
        self._counts = self._mask.sum(1)  # (n,)
        self._cells = float(self._counts.sum())
        self._initial: dict[tuple[Architecture, str], State] = {}
        self._stack([(Member(config), self._initial_state(config)) for config in configs])

    def _own(self, config: TrialConfig) -> Architecture:
        return Architecture.of(config.model, self._features)

    def _family_of(self, architecture: Architecture) -> Family:
        family = build_family(architecture)
        family.networks = {name: replace(mlp, bf16=self._bf16) for name, mlp in family.networks.items()}
        return family

    def _initial_state(self, config: TrialConfig) -> State:
        """Returns where a configuration starts: the same for all of one shape that start their latents alike, so made
        once."""
        key = self._own(config), config.train.latent_init
        if key not in self._initial:
            architecture, how = key
            family, x, mask = self._family_of(architecture), self._x.cpu(), self._mask.cpu()
            weights = family.initial(derived_generator(self._seed, Purpose.WEIGHTS))  # (M,)
            rows = family.initial_rows(x, mask, how, derived_generator(self._seed, Purpose.ROWS))
            if architecture.exact:
                (decoder,) = family.layers(weights[None])["decoder"]
                weight, bias = regression(rows, x, mask)
                decoder.weight[0].mul_(_START_NOISE).add_(weight)
                decoder.bias[0, 0].copy_(bias)
            moments = {"weight_moments": torch.zeros(2, *weights.shape), "row_moments": torch.zeros(2, *rows.shape)}
            self._initial[key] = {"weights": weights, "rows": rows, **moments}
        return self._initial[key]

    def _stack(self, parts: list[tuple[Member, State]]) -> None:
        """Takes these members and no others; changes nothing when it fails, for want of memory, say."""
        for member, _ in parts:
            own = signature(member.config, self._features, pad=self._pad)
            if own != self._signature:
                raise ConfigError(
                    "a population needs equal architecture, batches, optimiser, schedule, seed, precision, kind of "
                    f"inference, got {own} beside {self._signature}; train them apart"
                )
        parts = sorted(parts, key=self._place)
        configs = [member.config for member, _ in parts]
        architectures = [self._own(config) for config in configs]
        common = widest(architectures)
        family = self._family_of(common)
        narrower = {own for own in architectures if own._replace(activation=common.activation) != common}
        padding_of = {own: Padding.between(build_family(own), family, self.device) for own in narrower}
        paddings = [padding_of.get(own) for own in architectures]

        def stacked(name: str, dim: int = 0) -> Tensor:
            tensors = [state[name].to(self.device) for _, state in parts]
            padded = [
                tensor if padding is None else padding.of(name).pad(tensor)
                for tensor, padding in zip(tensors, paddings, strict=True)
            ]
            return torch.stack(padded, dim=dim)

        def vector(value: Callable[[TrialConfig], float]) -> Tensor:
            values = [value(config) for config in configs]
            return torch.tensor(values, dtype=torch.float32, device=self.device).view(-1, 1, 1)

        flat, flat_moments = stacked("weights"), stacked("weight_moments", 1)  # (p, M), (2, p, M)
        rows, row_moments = stacked("rows"), stacked("row_moments", 1)  # (p, n, s), (2, p, n, s)
        grad, row_grad = torch.empty_like(flat), torch.empty_like(rows)
        log_var = vector(lambda c: c.model.log_var)
        if narrower:  # of the prior, where a member has no latent
            latents = torch.arange(common.latent, device=self.device)
            log_var = log_var * (latents < vector(lambda c: c.model.latent))  # (p, 1, k)

        self.members, self.family, self._paddings = [member for member, _ in parts], family, paddings
        self._activations = [own.activation or "linear" for own in architectures]
        self._flat, self._flat_moments, self._grad = flat, flat_moments, grad
        self._rows, self._row_moments, self._row_grad = rows, row_moments, row_grad
        self._kl_weight, self._log_var = vector(lambda c: c.train.kl_weight), log_var
        decay = [config.train.weight_decay for config in configs]
        self._optimiser = OPTIMISERS[self._optimiser_name](flat, grad, flat_moments, decay)
        self._row_optimiser = ROW_OPTIMISERS[self._optimiser_name](rows, row_grad, row_moments)
        self._initial = {key: state for key, state in self._initial.items() if key[0] in architectures}
        self._workspaces: dict[tuple[int, int], Workspace] = {}
        self._passes: dict[tuple[int, int, int], Passes] = {}

    def _place(self, part: tuple[Member, State]) -> tuple[tuple[int, bool], str, int]:
        """Returns what members are ordered by: those that train as a group are side by side, and among them those of
        one activation, and then those at the same epoch."""
        member, _ = part
        return self._group_of(member), self._own(member.config).activation, member.epoch

    def _group_of(self, member: Member) -> tuple[int, bool]:
        return (0, False) if self._mixed else (member.epoch, member.config.model.dropout > 0)

    @property
    def epoch(self) -> int:
        """Number of epochs that every member has completed."""
        return min(member.epoch for member in self.members)

    def join(self, config: TrialConfig, state: State | None = None) -> Member:
        """Adds a configuration, from its start or from a state; the others do not notice. Returns its member.

        Raises:
            ConfigError: It has another signature, or the state belongs to another configuration or dataset.
        """
        member = Member(config)
        state = self._initial_state(config) if state is None else self._checked(member, state)
        self._stack([*zip(self.members, self.states(), strict=True), (member, state)])
        return member

    def leave(self, *members: Member) -> None:
        """Removes members; the others do not notice. The last one cannot leave."""
        self._stack([part for part in zip(self.members, self.states(), strict=True) if part[0] not in members])

    def has_room_for(self, config: TrialConfig) -> bool:
        """Returns whether a configuration may join, and padding then at most doubles what the members have of
        parameters, those of their rows included."""
        if signature(config, self._features, pad=self._pad) != self._signature:
            return False
        architectures = [self._own(each) for each in (config, *(member.config for member in self.members))]
        common = widest(architectures)
        parameters = {architecture: self._parameters(architecture) for architecture in {*architectures, common}}
        return len(architectures) * parameters[common] <= _MOST_PADDED * sum(parameters[own] for own in architectures)

    def _parameters(self, architecture: Architecture) -> int:
        family = build_family(architecture)
        return family.n_parameters + len(self._x) * family.row_parameters

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
        """Trains every member one epoch further; a member that diverges harms no other."""
        for members in self._groups():
            start = time.perf_counter()
            group = self.members[members]
            weights = [member.config.train.kl_weight for member in group]
            told = self._train_group(members)
            seconds = (time.perf_counter() - start) / len(group)
            for member, weight, sums in zip(group, weights, told, strict=True):
                member.epoch += 1
                member.train_seconds += seconds
                if sums is None:  # it stands still
                    continue
                error, weighted, divergence = sums
                member.metrics = {
                    "train_loss": (weighted + weight * divergence) / self._cells,
                    "train_reconstruction": error / self._cells,
                    "train_kl": divergence / len(self._x),
                }
                if self._schedule_name == "plateau" and not self.family.architecture.exact:
                    member.plateau.update(member.metrics["train_loss"])

    def _groups(self) -> Iterator[slice]:
        """Yields the members to train together: on a CPU those at the same epoch, with dropout or without, as many as
        stay in the cache."""
        if self._mixed:
            yield slice(0, len(self.members))
            return
        most, start = max(1, _CACHE_BYTES // (16 * self._flat.shape[1])), 0
        for _, group in groupby(self.members, key=self._group_of):
            end = start + len(list(group))
            yield from (slice(first, min(first + most, end)) for first in range(start, end, most))
            start = end

    def _train_group(self, members: slice) -> list[list[float] | None]:
        """Trains some members for an epoch; returns of each the sums of _Sums, None if it has settled."""
        if self.family.architecture.exact:
            return [self._solve(index) for index in range(*members.indices(len(self.members)))]
        group = self.members[members]
        configs, epochs = [member.config for member in group], [member.epoch for member in group]
        factors = [member.plateau.factor for member in group]
        schedule = SCHEDULES[self._schedule_name]
        widths = self.family.architecture.latent, self.family.architecture.hidden
        epoch = Epoch(self._x, self._mask, self._counts, configs, epochs, schedule, factors, widths)
        if not (self._mixed or self._pad) and machine_code.trains(self.family, configs[0]):
            return self._train_natively(members, epoch)
        train = self._train_amortised if self.family.amortised else self._train_free
        told: list[list[float] | None] = torch.stack(train(members, epoch)).T.tolist()  # the one wait for the device
        return told

    def _solve(self, index: int) -> list[float] | None:
        """Takes one member an iteration of linear.py further, unless the last one changed next to nothing.

        What it changed is kept where an optimiser would keep its first moment, and so is part of the state; nothing is
        kept there when the loss has settled.
        """
        member, flat, change = self.members[index], self._flat[index], self._flat_moments[0, index]
        if member.epoch > 0 and bool(change.abs().max() <= _SETTLED * flat.abs().max()):
            return None
        networks, train = self.family.layers(self._flat), member.config.train
        ridge = train.weight_decay * self._cells / self._features
        try:
            done = iterate(self.family.linear(networks, index), self._x, self._mask, train.kl_weight, ridge)
        except NotSolved:
            flat.fill_(torch.nan)
            return [torch.nan] * 3
        change.copy_(flat)
        self.family.set_linear(networks, index, done.decoder)
        torch.sub(flat, change, out=change)
        loss = (done.weighted + train.kl_weight * done.kl) / self._cells
        if abs(loss - member.metrics.get("train_loss", torch.inf)) < _SETTLED_LOSS * train.kl_weight:
            change.zero_()
        self._rows[index] = done.means
        return [done.squared_error, done.weighted, done.kl]

    def _train_natively(self, members: slice, epoch: Epoch) -> list[list[float] | None]:
        """Trains decoders and free row posteriors by machine code, one member after the other."""
        indices = range(*members.indices(len(self.members)))
        return [
            list(
                machine_code.train_epoch(
                    self.family,
                    self.members[i].config,
                    (self._flat[i], self._grad[i], self._flat_moments[:, i]),
                    (self._rows[i], self._row_moments[:, i]),
                    self._holed,
                    epoch,
                    at,
                )
            )
            for at, i in enumerate(indices)
        ]

    @cached_property
    def _holed(self) -> Tensor:
        """The train rows (n, d), NaN where missing."""
        return self._x.masked_fill(self._mask == 0, torch.nan)

    def _train_free(self, members: slice, epoch: Epoch) -> _Sums:
        """Trains decoders and free row posteriors.

        An epoch visits every row once, so a row's posterior does not change before its batch, and what its batch tells
        about it is not needed before the next epoch: draws are made, and posteriors updated, for all rows at once.
        """
        posterior = self.family.posterior(self._rows[members], self._log_var[members])
        z, deviation = draw(posterior, epoch.noise)  # (p, n, k)
        z = epoch.shuffled(z)
        grad_z = torch.empty_like(z)
        networks, into = self.family.layers(self._flat[members]), self.family.layers(self._grad[members])
        for batch in epoch.batches():
            self._decode(members, networks, into, epoch, batch, z[:, batch.rows], grad_z[:, batch.rows])
            self._optimiser.step_(members, batch.taken, batch.lr)
        weight = self._kl_weight[members] * epoch.in_row_order(epoch.inverse_normaliser)
        learned = self.family.architecture.posterior == "learned"
        self._row_grad[members] = posterior_gradients(
            posterior, epoch.in_row_order(grad_z), deviation, weight, learned=learned
        )
        kl = kl_divergence(posterior).sum(1)
        self._row_optimiser.step_(members, epoch.epochs, epoch.latent_lr)
        return self._sums(epoch, kl)

    def _train_amortised(self, members: slice, epoch: Epoch) -> _Sums:
        """Trains encoders and decoders."""
        networks, into = self.family.layers(self._flat[members]), self.family.layers(self._grad[members])
        noise = epoch.shuffled(epoch.noise)
        learned = self.family.architecture.posterior == "learned"
        kl = torch.zeros(len(self._flat[members]), device=self.device)
        for batch in epoch.batches():
            statistics, tape = self.family.encode(networks, batch.x, batch.mask)
            posterior = self.family.posterior(statistics, self._log_var[members])
            z, deviation = draw(posterior, noise[..., batch.rows, :])
            grad_z = self._decode(members, networks, into, epoch, batch, z)
            kl += kl_divergence(posterior).sum(1)
            weight = self._kl_weight[members] * epoch.inverse_normaliser[..., batch.rows, :]
            grad = posterior_gradients(posterior, grad_z, deviation, weight, learned=learned)
            self.family.encode_backward(networks, tape, grad, into)
            self._optimiser.step_(members, batch.taken, batch.lr)
        return self._sums(epoch, kl)

    def _sums(self, epoch: Epoch, kl: Tensor) -> _Sums:
        squared_error = epoch.squared_error()
        noisy = "noise" in self.family.networks
        return _Sums(squared_error, epoch.noisy_errors.sum(-1) if noisy else squared_error, kl)

    def _decode(
        self,
        members: slice,
        networks: Networks,
        into: Networks,
        epoch: Epoch,
        batch: Batch,
        z: Tensor,
        grad_z: Tensor | bool = True,
    ) -> Tensor:
        """Decodes a batch, writes the gradients of decoder and noise, and lets the epoch know the errors.

        Returns:
            The gradient with respect to z (p, b, k).
        """
        log_noise = self.family.log_noise(networks)
        passes = self._passes_of(members, batch.x.shape[-2], epoch)
        residual, carried = passes(z, batch.x, batch.weight, grad_z=grad_z, dropout=batch.dropout, log_noise=log_noise)
        torch.linalg.vector_norm(residual, dim=(1, 2), out=epoch.residual_norms[:, batch.number])
        if log_noise is not None:
            weighted, grad = noise_gradient(
                log_noise, residual, batch.weight, batch.normaliser, self._kl_weight[members]
            )
            epoch.noisy_errors[:, batch.number] = weighted
            log_variance_backward(networks["noise"], grad, into["noise"])
        return carried

    def _passes_of(self, members: slice, b: int, epoch: Epoch) -> Passes:
        """Returns the decoder's passes over some members and batches of b rows."""
        p = members.stop - members.start
        if (members.start, p, b) not in self._passes:
            activation = side_by_side(self._activations[members])
            decoder = replace(self.family.networks["decoder"], activation=activation)
            if (p, b) not in self._workspaces:
                self._workspaces[p, b] = decoder.workspace(p, b, self._flat)
            layers, into = self.family.layers(self._flat[members]), self.family.layers(self._grad[members])
            self._passes[members.start, p, b] = decoder_passes(
                decoder,
                layers["decoder"],
                into["decoder"],
                self._workspaces[p, b],
                how=self.members[0].config.train.compile,
                steps=epoch.steps_left,
            )
        return self._passes[members.start, p, b]

    @torch.no_grad()
    def models(self, members: Sequence[Member] | None = None) -> list[FittedModel]:
        """Returns the members, or some, as they are now, ready to impute; later training does not change them."""
        chosen = [i for i, member in enumerate(self.members) if members is None or member in members]
        tensors = [self._tensors(i) for i in chosen]
        latents = [own["rows"] for own in tensors]
        if self.family.amortised:
            encoded, _ = self.family.encode(self.family.layers(self._flat), self._x, self._mask)
            latents = [encoded[i] for i in chosen]
        return [
            FittedModel(self.members[i].config, own["weights"].clone(), rows.clone())
            for i, own, rows in zip(chosen, tensors, latents, strict=True)
        ]

    def states(self) -> list[State]:
        """Returns the members' states; later training changes them, so copy what is to stay."""
        return [self.state(member) for member in self.members]

    def state(self, member: Member) -> State:
        """Returns one member's state; see ``states``."""
        return {
            **self._tensors(self.members.index(member)),
            "progress": torch.tensor([member.epoch, member.train_seconds], dtype=torch.float64),
            **{name: torch.tensor(value, dtype=torch.float64) for name, value in member.metrics.items()},
            **({"plateau": member.plateau.to_tensor()} if self._schedule_name == "plateau" else {}),
        }

    def _tensors(self, i: int) -> State:
        """Returns the tensors of the i-th member's state."""
        values = self._flat[i], self._flat_moments[:, i], self._rows[i], self._row_moments[:, i]
        padding = self._paddings[i]
        return {
            name: value if padding is None else padding.of(name).unpad(value)
            for name, value in zip(_TENSORS, values, strict=True)
        }

    def load_states(self, states: Sequence[State]) -> None:
        """Goes on from where the states were taken, one for each member in the order of ``members``.

        Raises:
            ConfigError: A state belongs to another architecture or other rows.
        """
        members = [Member(member.config) for member in self.members]
        self._stack([(m, self._checked(m, state)) for m, state in zip(members, states, strict=True)])

    def _checked(self, member: Member, state: State) -> State:
        """Returns the state, having set the member's progress to it."""
        family, n, plateau = self._family_of(self._own(member.config)), len(self._x), self._schedule_name == "plateau"
        weights, rows = (family.n_parameters,), (n, family.row_parameters)
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
