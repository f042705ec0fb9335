"""Evaluate a checkpoint, or an exported file, of an mmdet, mmpretrain or mmsegmentation config."""

from mmevit.cli.test import main

if __name__ == '__main__':
    main()
