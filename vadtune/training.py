"""Training: a Population trains P configurations of one architecture at once; P = 1 is the ordinary case.

Neighbours never matter. Randomness is common to all members and derived, never carried along: the batch order, the
noise and the initial weights come from generators seeded by (seed, purpose, epoch), so a configuration's result is the
same alone or packed, and a checkpoint needs no generator state to resume exactly.

Shape comments: p members, n rows, b batch rows, d features, s statistics, M network parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vadtune.config import TrialConfig
from vadtune.data import Part
from vadtune.errors import ConfigError, TrialDiverged
from vadtune.inference import FittedModel
from vadtune.model import Architecture, build_family
from vadtune.model.objective import objective
from vadtune.optimiser import SCHEDULES, adamw_
from vadtune.randomness import Purpose, derived_generator, standard_normal


class Population:
    """P configurations of one architecture in training on the same rows.

    Args:
        configs: The configurations. They may differ in whatever does not change shapes, the batches or the seed.
        train: The train rows; copied.
        device: Where to train.

    Attributes:
        epoch: Number of completed epochs.
        train_seconds: Time spent in ``train_until`` so far.
        metrics: Sums of the last epoch, each (p,): train_loss, train_reconstruction (squared error per observed cell),
            train_kl (nats per row).

    Raises:
        ConfigError: The configurations cannot share a population.
    """

    def __init__(self, configs: Sequence[TrialConfig], train: Part, device: str = "cpu") -> None:
        first = configs[0]
        shared = {self._signature(config, train) for config in configs}
        if len(shared) != 1:
            raise ConfigError(
                "a population needs equal architecture, epochs, batch_size, schedule and seed, "
                f"got {sorted(shared, key=repr)}; train these configurations apart"
            )
        self.configs = list(configs)
        self.device = torch.device(device)
        self.epoch = 0
        self.train_seconds = 0.0
        self.metrics: dict[str, Tensor] = {}
        self._seed, self._epochs = first.train.seed, first.train.epochs
        self._batch_size = min(first.train.batch_size, len(train.x))
        self._schedule = SCHEDULES[first.train.schedule]
        self.family = build_family(Architecture.of(first.model, train.x.shape[1]))

        mask = torch.tensor(train.mask)
        self._x = torch.tensor(train.x).masked_fill_(~mask, 0.0).to(self.device)  # (n, d)
        self._mask = mask.float().to(self.device)  # (n, d)

        def vector(value: Callable[[TrialConfig], float], dims: int) -> Tensor:
            values = torch.tensor([value(config) for config in configs], dtype=torch.float32, device=self.device)
            return values.view(-1, *[1] * (dims - 1))

        self._kl_weight = vector(lambda c: c.train.kl_weight, 3)
        self._log_var = vector(lambda c: c.model.log_var, 3)
        self._latent_lr = vector(lambda c: c.train.latent_lr, 3)
        self._net_lr = vector(lambda c: c.train.net_lr, 2)
        self._weight_decay = vector(lambda c: c.train.weight_decay, 2)

        p = len(configs)
        weights = self.family.initial(derived_generator(self._seed, Purpose.WEIGHTS))
        how = [config.train.latent_init for config in configs]
        start = {
            name: self.family.initial_rows(
                self._x.cpu(), self._mask.cpu(), name, derived_generator(self._seed, Purpose.ROWS)
            )
            for name in set(how)
        }
        self._flat = weights.to(self.device).expand(p, -1).clone()  # (p, M)
        self._flat_moments = torch.zeros(2, *self._flat.shape, device=self.device)
        self._rows = torch.stack([start[name] for name in how]).to(self.device)  # (p, n, row parameters)
        self._row_moments = torch.zeros(2, *self._rows.shape, device=self.device)
        self._grad = torch.empty_like(self._flat)

    @staticmethod
    def _signature(config: TrialConfig, train: Part) -> tuple[object, ...]:
        shared = config.train.epochs, config.train.batch_size, config.train.schedule, config.train.seed
        return (*Architecture.of(config.model, train.x.shape[1]), *shared)

    def train_until(self, epoch: int) -> None:
        """Trains up to and including this epoch.

        Raises:
            TrialDiverged: A member's loss became NaN or infinite.
        """
        start = time.perf_counter()
        while self.epoch < epoch:
            self._train_epoch()
            if not all(torch.isfinite(values).all() for values in self.metrics.values()):
                name = next(name for name, values in self.metrics.items() if not torch.isfinite(values).all())
                raise TrialDiverged(f"diverged: {name} became NaN or infinite in epoch {self.epoch}")
        self.train_seconds += time.perf_counter() - start

    def _train_epoch(self) -> None:
        n, k = len(self._x), self.family.architecture.latent
        order = torch.randperm(n, generator=derived_generator(self._seed, Purpose.ORDER, self.epoch)).to(self.device)
        noise = standard_normal(
            n, k, generator=derived_generator(self._seed, Purpose.NOISE, self.epoch), device=self.device
        )
        batches = torch.split(order, self._batch_size)
        networks, into = self.family.layers(self._flat), self.family.layers(self._grad)
        squared_error = torch.zeros(len(self.configs), device=self.device)
        kl = torch.zeros_like(squared_error)
        for index, rows in enumerate(batches):
            step = self.epoch * len(batches) + index
            factor = self._schedule(step / (self._epochs * len(batches)))
            x, mask = self._x[rows], self._mask[rows]
            own = self._rows[:, rows] if self.family.row_parameters else None
            statistics, tape = self.family.statistics(networks, own, x, mask)
            terms, gradients = objective(
                self.family.networks["decoder"],
                networks["decoder"],
                self.family.posterior(statistics, self._log_var),
                x,
                mask,
                noise=noise[rows],
                kl_weight=self._kl_weight,
                normaliser=mask.sum().clamp_(min=1.0),
                learned=self.family.architecture.posterior == "learned",
                into=into["decoder"],
            )
            grad_rows = self.family.backward(networks, tape, self.family.join(gradients), into)
            if own is not None and grad_rows is not None:
                # Lazy Adam: only the batch's rows move. Each row is visited once an epoch, which numbers its steps.
                moments = self._row_moments[:, :, rows]
                adamw_(own, grad_rows, moments, step=self.epoch + 1, lr=self._latent_lr * factor)
                self._rows[:, rows] = own
                self._row_moments[:, :, rows] = moments
            adamw_(
                self._flat,
                self._grad,
                self._flat_moments,
                step=step + 1,
                lr=self._net_lr * factor,
                decay=self._weight_decay,
            )
            squared_error += terms.squared_error
            kl += terms.kl
        self.epoch += 1
        cells = self._mask.sum()
        self.metrics = {
            "train_loss": (squared_error + self._kl_weight.flatten() * kl) / cells,
            "train_reconstruction": squared_error / cells,
            "train_kl": kl / n,
        }

    @torch.no_grad()
    def models(self) -> list[FittedModel]:
        """Returns the members as they are now, ready to impute; later training does not change them."""
        latents = self._rows.clone()
        if self.family.amortised:
            networks = self.family.layers(self._flat)
            latents = self.family.statistics(networks, None, self._x, self._mask)[0]
        return [FittedModel(config, self._flat[i].clone(), latents[i].clone()) for i, config in enumerate(self.configs)]

    def state(self) -> dict[str, Tensor]:
        """Returns all that resuming needs, as named tensors; they are not copies."""
        return {
            "weights": self._flat,
            "weight_moments": self._flat_moments,
            "rows": self._rows,
            "row_moments": self._row_moments,
            "progress": torch.tensor([self.epoch, self.train_seconds], dtype=torch.float64),
            **self.metrics,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from where ``state`` was taken.

        Raises:
            ConfigError: The state belongs to another architecture or other rows.
        """
        own = self.state()
        for name in ("weights", "weight_moments", "rows", "row_moments"):
            if name not in state or state[name].shape != own[name].shape:
                got = tuple(state[name].shape) if name in state else "nothing"
                raise ConfigError(
                    f"a training state needs {name} of shape {tuple(own[name].shape)}, got {got}; "
                    "it was taken from another configuration or dataset"
                )
            own[name].copy_(state[name])
        epoch, self.train_seconds = state["progress"].tolist()
        self.epoch = int(epoch)
        self.metrics = {name: state[name].clone() for name in state if name.startswith("train_")}
