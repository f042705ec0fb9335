"""Measure the similarity of attention heads over a data set (Figure 4)."""

from mmevit.cli.analysis.head_similarity import main

if __name__ == '__main__':
    main()
