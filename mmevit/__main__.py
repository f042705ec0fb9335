"""Print the installed versions, and check that they work: ``python -m mmevit``."""

from mmevit.cli.self_check import main

if __name__ == '__main__':
    main()
