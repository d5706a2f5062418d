"""What survives a failure: snapshots of a search, recovery of a trial."""
