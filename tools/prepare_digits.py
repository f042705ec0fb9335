"""Make the digits data sets: detection, segmentation and classification, no download."""

from mmevit.cli.prepare_digits import main

if __name__ == '__main__':
    main()
