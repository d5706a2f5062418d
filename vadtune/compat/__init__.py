"""Import of files that the published VAD code wrote. May import all packages but cli."""
