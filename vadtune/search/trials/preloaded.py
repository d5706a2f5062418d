"""What worker processes of a local Ray import when they start, while the driver imports Tune and MLflow."""

from __future__ import annotations

import vadtune.search.trials.trainable
import vadtune.training.scoring  # noqa: F401  # imports PyTorch
