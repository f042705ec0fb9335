"""Script for a checkout; the command is in mmevit/cli/train.py."""

from mmevit.cli.train import main

if __name__ == '__main__':
    main()
