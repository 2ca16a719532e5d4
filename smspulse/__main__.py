"""`python -m smspulse`."""

from smspulse.cli import main

main()
