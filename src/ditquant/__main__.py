"""`python -m ditquant`."""

from ditquant.cli import main

main()
