"""Training of populations of configurations, inference for new rows, validation scores, and refits on more rows.

May import models, native, config, data, tables and core. population.py is the entry point of training, inference.py
that of imputation.
"""
