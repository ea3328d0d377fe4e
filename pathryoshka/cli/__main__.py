"""`python -m pathryoshka.cli`, where the script is not on PATH."""

from pathryoshka.cli import main

main()
