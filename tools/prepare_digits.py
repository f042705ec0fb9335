"""Script for a checkout; the command is in mmevit/cli/prepare_digits.py."""

from mmevit.cli.prepare_digits import main

if __name__ == '__main__':
    main()
