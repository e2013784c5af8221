"""`python -m service` is `bitfront`."""

from service.cli import main

main()
