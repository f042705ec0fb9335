"""Look through the data of a config, and tell what is wrong with it and what becomes of that."""

from mmevit.cli.check_dataset import main

if __name__ == '__main__':
    main()
