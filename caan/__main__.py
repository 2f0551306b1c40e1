"""`python -m caan` is `caan`; for `torchrun -m caan`."""

import sys

from .commands import main

sys.exit(main())
