"""``python -m dreamda_aug`` is the command `dreamda`."""

import sys

from dreamda_aug.cli.main import main

sys.exit(main())
