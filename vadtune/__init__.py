"""vadtune finds the best Variational Auto-Decoder (or VAE) for data with missing values."""

__version__ = "0.1.0"
