"""Check the data of a config, and list its faults."""

from mmevit.cli.check_dataset import main

if __name__ == '__main__':
    main()
