"""The sections ``model``, ``train`` and ``infer`` of a search file.

Names that registries of other packages implement are listed here as plain tuples, so that checking a file does not
import PyTorch; a test compares them with the registries.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from vadtune.core.schema import Real, Section, Seed, Whole, one_of

FAMILIES = ("vad", "vae")
ACTIVATIONS = ("relu", "tanh", "gelu", "silu", "linear")
HEADS = ("plain", "projection")
NOISES = ("fixed", "learned")
POSTERIORS = ("learned", "fixed", "none")
LATENT_INITS = ("pca", "pca_iterated", "normal", "zeros")
OPTIMISERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "constant", "plateau")
PRECISIONS = ("float32", "bf16")
COMPILE = ("auto", "on", "off")
STARTS = ("nearest", "train", "normal", "zeros")


def is_closed_form(family: str, layers: int, head: str, posterior: str) -> bool:
    """Whether a model is trained and inferred in closed form: a linear decoder with learned posteriors."""
    return family == "vad" and layers == 0 and head == "plain" and posterior == "learned"


class ModelConfig(Section):
    """The section ``model``: family, network, output head, noise and posterior."""

    family: Annotated[Literal["vad", "vae"], one_of("family", FAMILIES)] = "vad"
    latent: Annotated[Whole, Field(ge=1)] = 16
    layers: Annotated[Whole, Field(ge=0, description="hidden layers; 0 is a linear decoder")] = 1
    hidden: Annotated[Whole, Field(ge=1)] = 128
    activation: Annotated[str, one_of("activation", ACTIVATIONS)] = "relu"
    layer_norm: bool = False  # before every activation
    dropout: Annotated[Real, Field(ge=0, lt=1, description="share of the decoder's hidden units")] = 0.0
    head: Annotated[str, one_of("head", HEADS)] = "plain"  # projection: columns are x, y of points in space
    skip: bool = False  # a linear map in parallel with the decoder's hidden layers
    noise: Annotated[Literal["fixed", "learned"], one_of("noise", NOISES)] = (
        "fixed"  # learned: one variance per feature
    )
    posterior: Annotated[Literal["learned", "fixed", "none"], one_of("posterior", POSTERIORS)] = "learned"
    log_var: Annotated[Real, Field(ge=-50, le=10, description="log variance of a fixed posterior")] = -2.0

    @field_validator("skip")
    @classmethod
    def _skip_needs_plain_head(cls, skip: bool, info: ValidationInfo) -> bool:
        head = info.data.get("head", "plain")
        if skip and head != "plain":
            raise ValueError(f"needs head plain, got head {head}; leave one of them out")
        return skip

    @property
    def closed_form(self) -> bool:
        """See ``is_closed_form``."""
        return is_closed_form(self.family, self.layers, self.head, self.posterior)


class TrainConfig(Section):
    """The section ``train``: how the decoder and the posteriors of the train rows are fitted.

    ``kl_weight`` multiplies the KL divergence, with the squared error summed over observed cells; the ``ratio_kl`` of
    the published VAD code is ``kl_weight`` divided by the observed cells per row. 0 drops the prior.

    A linear decoder with learned posteriors is fitted in closed form (models/linear_em.py): an epoch is one iteration over
    all rows, and options of batches and gradients do not apply. Its ``weight_decay`` is a ridge penalty on the weights,
    in units of the observed cells of an average column.
    """

    epochs: Annotated[Whole, Field(ge=1)] = 250
    batch_size: Annotated[Whole, Field(ge=1)] = 128
    kl_weight: Annotated[Real, Field(ge=0)] = 0.1
    net_lr: Annotated[Real, Field(gt=0)] = 2e-3
    latent_lr: Annotated[Real, Field(gt=0)] = 0.1
    weight_decay: Annotated[Real, Field(ge=0)] = 0.01
    latent_init: Annotated[str, one_of("latent_init", LATENT_INITS)] = "pca"
    optimiser: Annotated[str, one_of("optimiser", OPTIMISERS)] = "adamw"
    schedule: Annotated[str, one_of("schedule", SCHEDULES)] = "cosine"
    precision: Annotated[str, one_of("precision", PRECISIONS)] = (
        "float32"  # of matrix products; parameters stay float32
    )
    compile: Annotated[str, one_of("compile", COMPILE)] = "auto"
    seed: Seed = 0


class InferConfig(Section):
    """The section ``infer``: how posteriors of new rows are fitted. A VAE starts from its encoder's output."""

    steps: Annotated[Whole, Field(ge=0)] = 100
    lr: Annotated[Real, Field(gt=0)] = 0.15
    start: Annotated[str, one_of("start", STARTS)] = "nearest"
    prior: Annotated[str, one_of("prior", ("standard", "train"))] = "standard"
    kl_weight: Annotated[Real, Field(ge=0)] | None = None  # None: as in training
