"""Script for a checkout; the command is in mmevit/cli/convert_checkpoint.py."""

from mmevit.cli.convert_checkpoint import main

if __name__ == '__main__':
    main()
