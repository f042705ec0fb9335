"""Script for a checkout; the command is in mmevit/cli/analysis/channel_importance.py."""

from mmevit.cli.analysis.channel_importance import main

if __name__ == '__main__':
    main()
