"""A running Ray cluster: joining it, checking it, submitting jobs to it."""
