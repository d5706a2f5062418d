"""Tables and figures for people: rows as CSV, JSON or text, and matplotlib figures as PNG.

May import all packages but compat and cli; heavy ones (torch, matplotlib) only inside functions or for types.
"""
