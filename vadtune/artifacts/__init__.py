"""Files on disk: model folders, training states, held-out predictions and run folders.

May import training and the packages before it.
"""
