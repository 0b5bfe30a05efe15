"""`python -m skyfx` is the command `skyfx`."""

from skyfx.cli import main

if __name__ == "__main__":
    main()
