"""Measure the speed of networks of mmevit, mmpretrain, timm and mmdet."""

from mmevit.cli.benchmark import main

if __name__ == '__main__':
    main()
