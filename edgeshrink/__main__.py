"""`python -m edgeshrink`."""

from edgeshrink.cli import main

if __name__ == "__main__":
    main()
