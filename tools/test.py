"""Script for a checkout; the command is in mmevit/cli/test.py."""

from mmevit.cli.test import main

if __name__ == '__main__':
    main()
