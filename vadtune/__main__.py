"""Runs the command line: ``python -m vadtune``."""

from vadtune.cli import console

if __name__ == "__main__":
    console()
