"""Create the digits data sets for detection, segmentation and classification."""

from mmevit.cli.prepare_digits import main

if __name__ == '__main__':
    main()
