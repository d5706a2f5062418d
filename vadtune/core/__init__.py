"""Errors, files, field types of sections, randomness, metrics and processes. Imports no other package of vadtune."""
