"""Predict on images, folders and videos; save JSON and pictures."""

from mmevit.cli.infer import main

if __name__ == '__main__':
    main()
