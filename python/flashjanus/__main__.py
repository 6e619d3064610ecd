"""`python -m flashjanus` is the `flashjanus` command."""

from flashjanus.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
