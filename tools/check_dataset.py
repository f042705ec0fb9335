"""Script for a checkout; the command is in mmevit/cli/check_dataset.py."""

from mmevit.cli.check_dataset import main

if __name__ == '__main__':
    main()
