"""Ensembles of a search's models: choosing members and weights, the kernel regression mixed in, export and loading.

May import tracking and the packages before it; never search.
"""
