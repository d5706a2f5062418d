"""Exported models on test rows: baselines, retests, comparisons, previews, saved predictions."""
