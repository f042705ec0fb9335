"""One module for each command, with ``main(argv=None)``."""
