"""What is kept on disk: model folders, training states, held-out predictions, run folders. May import training and all before it."""
