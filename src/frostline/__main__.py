"""Run the command `frostline` as `python -m frostline`."""

from frostline.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
