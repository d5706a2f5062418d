"""What every model family shares: an architecture, the decoder, and the small interface a family fills in.

A row's *posterior parameters* are the mean of its approximate posterior, followed by the log variance when that is
learned. Families differ only in where those of a train row come from: a table of free parameters (VAD) or an
encoder (VAE).
"""

from __future__ import annotations

from abc import ABC
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vadtune.config import ModelConfig, is_closed_form
from vadtune.core.errors import ConfigError
from vadtune.models.heads import HEADS
from vadtune.models.linear import Linear
from vadtune.models.networks import ACTIVATIONS, MLP, Layer
from vadtune.models.noise import FeatureNoise, log_variance, parameters_of
from vadtune.models.objective import Posterior

Networks = dict[str, list[Layer]]
_INITIAL_LOG_VAR = -2.0  # of a learned posterior; small enough for the means to be told apart from the first step on


class Architecture(NamedTuple):
    """All that fixes the shapes of a model: configurations that agree in it can train as one population.

    Attributes:
        family: A name of MODELS.
        features: Columns of the data, d.
        latent: Latent dimensions, k.
        hidden: Width of the hidden layers; 0 without any.
        layers: Number of hidden layers; 0 makes the decoder linear, as in probabilistic PCA.
        activation: A name of ACTIVATIONS; "" without hidden layers.
        posterior: learned, fixed or none.
        layer_norm: Whether hidden layers are normalised; False without hidden layers.
        head: What the decoder's last layer gives, a name of HEADS.
        skip: Whether the decoder has a linear map beside its hidden layers; False without hidden layers.
        noise: fixed (one variance of all features) or learned (one of each).
    """

    family: str
    features: int
    latent: int
    hidden: int
    layers: int
    activation: str
    posterior: str
    layer_norm: bool = False
    head: str = "plain"
    skip: bool = False
    noise: str = "fixed"

    @classmethod
    def of(cls, config: ModelConfig, features: int) -> Architecture:
        """Returns the architecture a configuration describes, for data of this many columns.

        Raises:
            ConfigError: The head needs another number of columns.
        """
        if config.head == "projection" and features % 2:
            raise ConfigError(
                f"model.head: projection needs points of two columns each, x and y, got {features} columns; "
                "take head plain, or data of points"
            )
        return cls(
            config.family,
            features,
            config.latent,
            config.hidden if config.layers else 0,
            config.layers,
            config.activation if config.layers else "",
            config.posterior,
            config.layer_norm and config.layers > 0,
            config.head,
            config.skip and config.layers > 0,
            config.noise,
        )

    @property
    def closed_form(self) -> bool:
        """Whether the posteriors are those of linear.py, so that nothing is trained by gradients."""
        return is_closed_form(self.family, self.layers, self.head, self.posterior)

    @property
    def posterior_params(self) -> int:
        """Number s of posterior parameters of a row; only the mean where the posterior is computed in closed form."""
        return 2 * self.latent if self.posterior == "learned" and not self.closed_form else self.latent

    def mlp(self, inputs: int, outputs: int, *, skip: bool = False) -> MLP:
        """Returns a perceptron with this architecture's hidden layers."""
        activation = ACTIVATIONS[self.activation or "linear"]
        return MLP((inputs, *[self.hidden] * self.layers, outputs), activation, self.layer_norm, skip)

    def decoder(self) -> MLP:
        """Returns the perceptron from latents to reconstructions."""
        return HEADS[self.head](self.mlp(self.latent, self.features, skip=self.skip))


class Family(ABC):
    """A model family, for one architecture. Holds shapes, no weights.

    Attributes:
        architecture: What fixes the shapes.
        networks: The family's perceptrons by name, in the order their parameters are stored; "decoder" is one of them,
            and "noise" where that is learned.
        row_parameters: Free parameters of each train row; 0 when the family has none.
        amortised: Whether an encoder computes a row's posterior parameters; otherwise they are free parameters.
    """

    row_parameters: int
    amortised: bool

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.networks = {"decoder": architecture.decoder()}
        if architecture.noise == "learned":
            self.networks["noise"] = FeatureNoise.over(architecture.features)

    def encode(self, networks: Networks, x: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
        """Returns the posterior parameters of a batch (p, b, s), and what ``encode_backward`` needs.

        For amortised families only.

        Args:
            networks: The weights.
            x: (b, d) or (p, b, d), with 0 in place of missing cells.
            mask: Like x, float, 1 = observed.
        """
        raise NotImplementedError

    def encode_backward(self, networks: Networks, tape: Any, grad: Tensor, into: Networks) -> None:
        """Carries the gradient of the posterior_params (p, b, s) back to the weights, written to ``into``. Of amortised
        families only."""
        raise NotImplementedError

    @property
    def n_parameters(self) -> int:
        """Number M of network parameters of one member."""
        return sum(mlp.n_parameters for mlp in self.networks.values())

    def initial(self, generator: torch.Generator) -> Tensor:
        """Returns network parameters (M,) for one member."""
        return torch.cat([mlp.initial(generator) for mlp in self.networks.values()])

    def initial_rows(self, x: Tensor, mask: Tensor, how: str, generator: torch.Generator) -> Tensor:
        """Returns initial free parameters of the train rows (n, row_parameters), for one member.

        Args:
            x: (n, d), with 0 in place of missing cells.
            mask: (n, d) float, 1 = observed.
            how: A name of the family's choices.
            generator: For random ones.
        """
        return x.new_zeros(len(x), 0)

    def initial_posterior_params(self, mean: Tensor) -> Tensor:
        """Returns the parameters (..., s) of posteriors with these means (..., k) and the initial log variance."""
        if self.architecture.posterior_params == self.architecture.latent:
            return mean
        return torch.cat([mean, torch.full_like(mean, _INITIAL_LOG_VAR)], dim=-1)

    def layers(self, flat: Tensor) -> Networks:
        """Returns every network's layers as views of ``flat`` (p, M)."""
        networks, start = {}, 0
        for name, mlp in self.networks.items():
            networks[name] = mlp.layers(flat[:, start : start + mlp.n_parameters])
            start += mlp.n_parameters
        return networks

    def posterior(self, posterior_params: Tensor, log_var: Tensor) -> Posterior:
        """Returns the posteriors that posterior_params (p, b, s) describe; ``log_var`` (p, 1, 1) is the fixed one."""
        if self.architecture.closed_form:
            return Posterior(posterior_params, None)
        match self.architecture.posterior:
            case "learned":
                mean, learned = posterior_params.chunk(2, dim=-1)
                return Posterior(mean, learned)
            case "fixed":
                return Posterior(posterior_params, log_var)
            case _:
                return Posterior(posterior_params, None)

    def linear(self, networks: Networks, member: int) -> Linear:
        """Returns the decoder of one member, in 64 bits. Of exact architectures only."""
        ((weight, bias, *_),), noise = networks["decoder"], self.log_noise(networks)
        return Linear(
            weight[member].double(), bias[member, 0].double(), None if noise is None else noise[member, 0].double()
        )

    def set_linear(self, networks: Networks, member: int, decoder: Linear) -> None:
        """Writes the decoder of one member. Of exact architectures only."""
        (layer,) = networks["decoder"]
        layer.weight[member].copy_(decoder.weight)
        layer.bias[member, 0].copy_(decoder.bias)
        if decoder.log_noise is not None:
            networks["noise"][0].bias[member, 0].copy_(parameters_of(decoder.log_noise))

    def log_noise(self, networks: Networks) -> Tensor | None:
        """Returns the log variances (p, 1, d) of the features, relative to their geometric mean; None where equal."""
        return log_variance(networks["noise"]) if "noise" in networks else None

    def decode(self, networks: Networks, z: Tensor) -> Tensor:
        """Returns the reconstructions (p, b, d) of latents (p, b, k)."""
        return self.networks["decoder"].forward(networks["decoder"], z)[0]
