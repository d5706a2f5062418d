"""Search files and trial configurations: their sections, domains, checks and defaults. May import core."""
