"""Measure how fast networks are, side by side: ours and any of mmpretrain, timm and mmdet."""

from mmevit.cli.benchmark import main

if __name__ == '__main__':
    main()
