"""The code that runs in Ray's workers (trainables and packs) and its placement. Imports algorithms/ and resume/."""
