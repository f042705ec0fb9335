"""Train a model of an mmdet or mmpretrain config."""

from mmevit.cli.train import main

if __name__ == '__main__':
    main()
