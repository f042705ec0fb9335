"""Show how much alike the heads of attention are, over a data set (Figure 4)."""

from mmevit.cli.analysis.head_similarity import main

if __name__ == '__main__':
    main()
