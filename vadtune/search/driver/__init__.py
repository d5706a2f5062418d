"""The process that runs a search: start, session, callbacks, progress, budget."""
