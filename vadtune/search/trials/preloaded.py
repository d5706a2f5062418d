"""What worker processes of a local Ray import when they start, while the driver imports Tune and MLflow."""

from __future__ import annotations

from vadtune.core.processes import large_imports

with large_imports():
    import vadtune.search.trials.trainable
    import vadtune.training.scoring  # noqa: F401  # imports PyTorch
    from vadtune import native

    native.is_available()  # imports Numba and the kernels
