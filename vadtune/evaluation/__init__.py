"""Exported models on test rows: retests and baselines, saved predictions, previews, and comparisons of searches.

Hidden values of test rows are read here only. May import ensemble and the packages before it.
"""
