"""Export a classifier, detector or backbone to another runtime and check the file."""

from mmevit.cli.export import main

if __name__ == '__main__':
    main()
