"""``python -m mmevit`` is the self check, ``python -m mmevit COMMAND`` the console script."""

import sys

from mmevit.cli.main import main

if __name__ == '__main__':
    main(sys.argv[1:] or ['self-check'])
