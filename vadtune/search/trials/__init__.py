"""What runs in the workers: trainables, packs, and where they are placed."""
