"""What every other package may use: errors, files, randomness, metrics, processes. Imports nothing of vadtune."""
