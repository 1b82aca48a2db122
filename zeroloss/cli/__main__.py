"""`python -m zeroloss.cli`."""

from zeroloss.cli import main

main()
