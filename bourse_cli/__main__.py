"""`python -m bourse_cli` is the `bourse` command."""

from bourse_cli.main import main

if __name__ == "__main__":
    main()
