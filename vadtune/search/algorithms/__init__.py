"""Which configuration is tried next, and when one is stopped: samplers, schedulers, the space."""
