"""Show which channels of attention and FFNs matter, and take out the others (Figure 5)."""

from mmevit.cli.analysis.channel_importance import main

if __name__ == '__main__':
    main()
