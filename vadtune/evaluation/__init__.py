"""Exported models on test rows: retests and baselines, saved predictions, previews, and comparisons of searches.

Only ``retest`` and ``previews`` read the values of test rows. May import ensemble and the packages before it.
"""
