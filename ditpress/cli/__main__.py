"""``python -m ditpress.cli``, as torchrun starts it."""

from ditpress.cli.group import main

main()
