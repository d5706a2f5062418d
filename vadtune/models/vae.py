"""The Variational Auto-Encoder on incomplete rows: the encoder reads zero-filled values and the mask.

Kingma & Welling 2014, arXiv 1312.6114; zero-filling with a bound over observed cells as in Nazabal et al. 2020
(HI-VAE, arXiv 1807.03653) and Mattei & Frellsen 2019 (MIWAE, arXiv 1812.02633).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vadtune.models.family import Architecture, Family, Networks
from vadtune.models.networks import Tape


class VAE(Family):
    """VAE: an encoder with the decoder's hidden layers computes the posterior parameters of any row."""

    amortised = True
    row_parameters = 0

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.networks["encoder"] = architecture.mlp(2 * architecture.features, architecture.posterior_params)

    def encode(self, networks: Networks, x: Tensor, mask: Tensor) -> tuple[Tensor, Tape]:
        """Returns the posterior parameters and the encoder's tape. See Family."""
        encoder = networks["encoder"]
        inputs = torch.cat([x, mask], dim=-1).expand(encoder[0].weight.shape[0], -1, -1)
        return self.networks["encoder"].forward(encoder, inputs)

    def encode_backward(self, networks: Networks, tape: Tape, grad: Tensor, grads_out: Networks) -> None:
        """Writes the gradients of the encoder's weights to ``grads_out``. See Family."""
        self.networks["encoder"].backward(networks["encoder"], tape, grad, grads_out["encoder"], grad_input=False)
