"""`python -m smspulse`."""

from smspulse.cli.main import main

main()
