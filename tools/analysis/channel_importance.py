"""Measure channel importance and prune the least important (Figure 5)."""

from mmevit.cli.analysis.channel_importance import main

if __name__ == '__main__':
    main()
