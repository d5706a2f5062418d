"""Training of populations of configurations, inference of the posteriors of new rows, scoring, refits.

May import models and the packages before it.
"""
