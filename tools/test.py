"""Evaluate a checkpoint or an exported file with an OpenMMLab config."""

from mmevit.cli.test import main

if __name__ == '__main__':
    main()
