"""The process that runs a search: start, callbacks, progress, budget. Imports all other folders of search/."""
