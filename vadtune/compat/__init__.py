"""Configurations of the published VAD code."""
