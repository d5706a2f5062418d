"""Searches: Optuna proposes configurations, Ray Tune runs them as trials, ASHA stops them early.

The only package that imports Ray and Optuna; private names of Ray are used in ``ray_compat`` only.
"""

import os

# Ray reads these when it is imported. No usage statistics are sent; SearchCallback logs the results; the snapshot for a
# resume is written every second rather than every ten.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
