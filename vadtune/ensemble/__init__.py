"""Ensembles of trials: candidates, selection, the kernel regression, the manifest, the average of models, export."""
