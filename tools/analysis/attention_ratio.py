"""Script for a checkout; the command is in mmevit/cli/analysis/attention_ratio.py."""

from mmevit.cli.analysis.attention_ratio import main

if __name__ == '__main__':
    main()
