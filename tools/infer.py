"""Predict what is in images, folders and videos: JSON and pictures, from any config here."""

from mmevit.cli.infer import main

if __name__ == '__main__':
    main()
