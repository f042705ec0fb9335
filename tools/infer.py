"""Script for a checkout; the command is in mmevit/cli/infer.py."""

from mmevit.cli.infer import main

if __name__ == '__main__':
    main()
