"""Snapshots to resume a search from, and retries of failed trials. Imports artifacts/ and ``ray_compat``."""
