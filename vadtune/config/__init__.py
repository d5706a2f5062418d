"""Search files and trial configurations: their sections, domains, checks and defaults.

May import core, tables and data. Importing it loads neither PyTorch nor scikit-learn.
"""

from vadtune.config.existence import is_closed_form
from vadtune.config.moved_data import DATA_PATHS
from vadtune.config.search_file import (
    DEFAULT_SAMPLES,
    SearchFile,
    load_recorded_search,
    load_search,
    load_trial,
    parse_search,
    parse_trial,
)
from vadtune.config.sections import (
    NOISES,
    REFITS,
    REPORTED_METRICS,
    SCHEDULERS,
    SELECTABLE_METRICS,
    STARTS,
    InferConfig,
    ModelConfig,
    SearchConfig,
    TrainConfig,
    TrialConfig,
    flatten,
    unflatten,
)

__all__ = [
    "DATA_PATHS",
    "DEFAULT_SAMPLES",
    "NOISES",
    "REFITS",
    "REPORTED_METRICS",
    "SCHEDULERS",
    "SELECTABLE_METRICS",
    "STARTS",
    "InferConfig",
    "ModelConfig",
    "SearchConfig",
    "SearchFile",
    "TrainConfig",
    "TrialConfig",
    "flatten",
    "is_closed_form",
    "load_recorded_search",
    "load_search",
    "load_trial",
    "parse_search",
    "parse_trial",
    "unflatten",
]
