"""`python -m launcher` is `w2sr`."""

import sys

from launcher.cli import main

sys.exit(main())
