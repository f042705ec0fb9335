"""Export a classifier, a detector or a backbone for another runtime, and check the file."""

from mmevit.cli.export import main

if __name__ == '__main__':
    main()
