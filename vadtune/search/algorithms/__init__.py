"""Samplers, schedulers and the search space. Imports config/, optuna, ray.tune and ``ray_compat``."""
