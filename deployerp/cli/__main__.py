"""`python -m deployerp.cli` is the command `deployerp`."""

from deployerp.cli.app import main

main()
