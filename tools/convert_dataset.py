"""Script for a checkout; the command is in mmevit/cli/convert_dataset.py."""

from mmevit.cli.convert_dataset import main

if __name__ == '__main__':
    main()
