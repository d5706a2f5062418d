"""Trains populations of configurations, fits the posteriors of new rows, and scores. May import models and all before it."""
