"""`python -m keras_griffin` is the `keras-griffin` command."""

import sys

from keras_griffin.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
