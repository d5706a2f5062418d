"""Model families. To add one: a file with a Family here, one line in MODELS, its name in config.FAMILIES, one YAML."""

from vadtune.models.family import Architecture, Family, Networks
from vadtune.models.vad import VAD
from vadtune.models.vae import VAE

MODELS: dict[str, type[Family]] = {"vad": VAD, "vae": VAE}


def build_family(architecture: Architecture) -> Family:
    """Returns the family an architecture names."""
    return MODELS[architecture.family](architecture)


__all__ = ["MODELS", "Architecture", "Family", "Networks", "build_family"]
