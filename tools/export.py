"""Script for a checkout; the command is in mmevit/cli/export.py."""

from mmevit.cli.export import main

if __name__ == '__main__':
    main()
