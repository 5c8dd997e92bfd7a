"""The front door: `python play.py --help`."""

from game.cli import console

if __name__ == "__main__":
    console()
