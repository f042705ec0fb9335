"""Script for a checkout; the command is in mmevit/cli/finetune.py."""

from mmevit.cli.finetune import main

if __name__ == '__main__':
    main()
