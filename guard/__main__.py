"""`python -m guard`: the command `guard`."""

from guard.cli import main

main()
