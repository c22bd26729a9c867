"""`python -m sparseggm` is the command `sparseggm`."""

import sys

from sparseggm.cli import main

sys.exit(main())
