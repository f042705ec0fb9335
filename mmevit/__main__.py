"""Tell what is installed, and check that it works: ``python -m mmevit``."""

from mmevit.cli.self_check import main

if __name__ == '__main__':
    main()
