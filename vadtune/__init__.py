"""vadtune searches for the best Variational Auto-Decoder (VAD) or VAE for data with missing values.

The command line is in ``vadtune.cli``; the other folders are the stages of its work, and each imports only those before
it: core, tables, data, config, native, models, training, artifacts, tracking, search, ensemble, evaluation, reports,
compat.
"""

__version__ = "0.2.0"
