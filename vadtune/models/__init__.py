"""Model families (vad, vae), their networks, the objective, and linear decoders in closed form.

May import native, config, data, tables and core. To add a family: a file with a Family, one line in MODELS, its name in
FAMILIES of config/sections.py, and a search file.
"""

from vadtune.models.family import Architecture, Family, Networks
from vadtune.models.vad import VAD
from vadtune.models.vae import VAE

MODELS: dict[str, type[Family]] = {"vad": VAD, "vae": VAE}


def build_family(architecture: Architecture) -> Family:
    """Returns the model family of an architecture."""
    return MODELS[architecture.family](architecture)


__all__ = ["MODELS", "Architecture", "Family", "Networks", "build_family"]
