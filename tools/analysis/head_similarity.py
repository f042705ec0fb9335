"""Script for a checkout; the command is in mmevit/cli/analysis/head_similarity.py."""

from mmevit.cli.analysis.head_similarity import main

if __name__ == '__main__':
    main()
