"""The search: Ray Tune runs trials, ASHA stops them, Optuna proposes them. The only place that knows Ray and Optuna."""

import os

# Read when Ray is imported. Nothing about a user's work leaves the machine unless the user turns it on; results are
# logged by our own callback; the snapshot a resume starts from is written every second, not every ten.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
