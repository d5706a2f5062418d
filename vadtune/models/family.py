"""Base class of the model families, and the architecture that fixes a model's shapes.

The posterior parameters of a row are the mean of its approximate posterior, followed by the log variance where that is
learned. Families differ in where those of a train row come from: a table of free parameters (VAD) or an encoder (VAE).

Shape comments: p members, n rows, b batch rows, d features, k latent dims, s posterior parameters, M network
parameters.
"""

from __future__ import annotations

from abc import ABC
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vadtune.config import ModelConfig, is_closed_form
from vadtune.core.errors import ConfigError
from vadtune.models.heads import HEADS
from vadtune.models.linear_em import LinearDecoder
from vadtune.models.networks import ACTIVATIONS, MLP, Layer
from vadtune.models.objective import Posterior
from vadtune.models.observation_noise import FeatureNoise, log_variance, parameters_of

Networks = dict[str, list[Layer]]
# Of a learned posterior; small enough for draws of different rows to differ from the first step on.
_INITIAL_LOG_VAR = -2.0


class Architecture(NamedTuple):
    """Everything that fixes the shapes of a model: configurations with equal architectures can share a population.

    Attributes:
        family: A name of MODELS.
        features: Columns of the data, d.
        latent: Latent dimensions, k.
        hidden: Width of the hidden layers; 0 without any.
        layers: Number of hidden layers; 0 makes the decoder linear, as in probabilistic PCA.
        activation: A name of ACTIVATIONS; "" without hidden layers.
        posterior: learned, fixed or none.
        layer_norm: Whether hidden layers are normalised; False without hidden layers.
        head: Output head of the decoder, a name of HEADS.
        skip: Whether the decoder adds a linear map of the latents; False without hidden layers.
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
        """Returns the architecture of a configuration, for data with this many features.

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
        """Whether EM trains the model in closed form (linear_em.py), without gradients."""
        return is_closed_form(self.family, self.layers, self.head, self.posterior)

    @property
    def posterior_params(self) -> int:
        """Number s of posterior parameters of a row; k for models in closed form, whose posteriors are means only."""
        return 2 * self.latent if self.posterior == "learned" and not self.closed_form else self.latent

    def mlp(self, inputs: int, outputs: int, *, skip: bool = False) -> MLP:
        """Returns a perceptron with this architecture's hidden layers."""
        activation = ACTIVATIONS[self.activation or "linear"]
        return MLP((inputs, *[self.hidden] * self.layers, outputs), activation, self.layer_norm, skip)

    def decoder(self) -> MLP:
        """Returns the perceptron from latents to reconstructions."""
        return HEADS[self.head](self.mlp(self.latent, self.features, skip=self.skip))


class Family(ABC):
    """A model family for one architecture. Holds shapes, no weights.

    Attributes:
        architecture: What fixes the shapes.
        networks: Perceptrons by name, in the order their parameters are stored: "decoder", "noise" where that is
            learned, and the family's.
        row_parameters: Number of free parameters of each train row; 0 if the family has none.
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
        """Returns the posterior parameters of a batch (p, b, s), and the tape for ``encode_backward``.

        Amortised families only.

        Args:
            networks: The weights.
            x: (b, d) or (p, b, d), with 0 in place of missing cells.
            mask: Like x, float, 1 = observed.
        """
        raise NotImplementedError

    def encode_backward(self, networks: Networks, tape: Any, grad: Tensor, grads_out: Networks) -> None:
        """Backpropagates the gradient of the posterior parameters (p, b, s) to the weights, written to ``grads_out``.

        Amortised families only.
        """
        raise NotImplementedError

    @property
    def n_parameters(self) -> int:
        """Number M of network parameters of one member."""
        return sum(mlp.n_parameters for mlp in self.networks.values())

    def initial(self, generator: torch.Generator) -> Tensor:
        """Returns initial network parameters (M,) of one member."""
        return torch.cat([mlp.initial(generator) for mlp in self.networks.values()])

    def initial_rows(self, x: Tensor, mask: Tensor, how: str, generator: torch.Generator) -> Tensor:
        """Returns initial free parameters of the train rows (n, row_parameters) of one member.

        Args:
            x: (n, d), anything where missing.
            mask: bool (n, d), True = observed.
            how: ``train.latent_init``.
            generator: For random starts.
        """
        return x.new_zeros(len(x), 0)

    def initial_posterior_params(self, mean: Tensor) -> Tensor:
        """Returns the parameters (..., s) of posteriors with the given means (..., k) and the initial log variance."""
        if self.architecture.posterior_params == self.architecture.latent:
            return mean
        return torch.cat([mean, torch.full_like(mean, _INITIAL_LOG_VAR)], dim=-1)

    def layers(self, flat: Tensor) -> Networks:
        """Returns the layers of every network as views of ``flat`` (p, M)."""
        networks, start = {}, 0
        for name, mlp in self.networks.items():
            networks[name] = mlp.layers(flat[:, start : start + mlp.n_parameters])
            start += mlp.n_parameters
        return networks

    def posterior(self, posterior_params: Tensor, log_var: Tensor) -> Posterior:
        """Returns the posteriors with these parameters (p, b, s); ``log_var`` (p, 1, 1) is used where it is fixed."""
        if self.architecture.closed_form or self.architecture.posterior == "none":
            return Posterior(posterior_params, None)
        if self.architecture.posterior == "fixed":
            return Posterior(posterior_params, log_var)
        return Posterior(*posterior_params.chunk(2, dim=-1))

    def linear_decoder(self, networks: Networks, member: int) -> LinearDecoder:
        """Returns the decoder of one member in float64; architectures in closed form only."""
        ((weight, bias, *_),), noise = networks["decoder"], self.obs_log_var(networks)
        log_var = None if noise is None else noise[member, 0].double()
        return LinearDecoder(weight[member].double(), bias[member, 0].double(), log_var)

    def set_linear_decoder(self, networks: Networks, member: int, decoder: LinearDecoder) -> None:
        """Writes the decoder of one member; architectures in closed form only."""
        (layer,) = networks["decoder"]
        layer.weight[member].copy_(decoder.weight)
        layer.bias[member, 0].copy_(decoder.bias)
        if decoder.obs_log_var is not None:
            networks["noise"][0].bias[member, 0].copy_(parameters_of(decoder.obs_log_var))

    def obs_log_var(self, networks: Networks) -> Tensor | None:
        """Returns log v, (p, 1, d), of the observation noise (observation_noise.py); None if the noise is common."""
        return log_variance(networks["noise"]) if "noise" in networks else None

    def decode(self, networks: Networks, z: Tensor) -> Tensor:
        """Returns the reconstructions (p, b, d) of latents (p, b, k)."""
        return self.networks["decoder"].forward(networks["decoder"], z)[0]
