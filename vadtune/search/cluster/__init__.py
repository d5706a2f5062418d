"""Joins a running Ray cluster, checks it and submits jobs to it. Imports ``ray_compat``; doctor also driver/."""
