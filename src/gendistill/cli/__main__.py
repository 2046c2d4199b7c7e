"""python -m gendistill.cli, for machines where the package is on the path but not installed."""

from gendistill.cli import main

if __name__ == "__main__":
    main()
