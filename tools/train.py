"""Train a model with an OpenMMLab config."""

from mmevit.cli.train import main

if __name__ == '__main__':
    main()
