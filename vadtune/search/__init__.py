"""The search: Ray Tune runs trials, ASHA stops them, Optuna proposes them. The only place that knows Ray and Optuna."""
