"""Lets `python -m minerua` do what `minerua` does."""

from minerua.cli import main

if __name__ == "__main__":
    main()
