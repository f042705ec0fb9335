"""``python -m mmevit`` is the self check, ``python -m mmevit COMMAND`` the console script."""

import sys

from mmevit.cli import main, self_check

if __name__ == '__main__':
    main.main() if sys.argv[1:] else self_check.main()
