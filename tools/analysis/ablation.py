"""Script for a checkout; the command is in mmevit/cli/analysis/ablation.py."""

from mmevit.cli.analysis.ablation import main

if __name__ == '__main__':
    main()
