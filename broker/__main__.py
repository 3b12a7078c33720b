"""`python -m broker`: the command line, for where the script is not on the path."""

from broker.cli import main

main()
