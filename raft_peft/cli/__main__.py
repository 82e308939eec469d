"""`python -m raft_peft.cli`."""

import sys

from raft_peft.cli.command import main

sys.exit(main())
