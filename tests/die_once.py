"""test_batch.py runs this script under torchrun. It is the command line, and its rank 0 is killed before the second
file that it writes.

torchrun then stops the other ranks, and with --max-restarts 1 starts all of them again, this time to live.
"""

import os
import sys

from kill_at_every_moment import die_before

from composition.cli import main

if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "0":
    die_before(2)  # rank 0 always writes two files or more, as it writes the tables
sys.exit(main(sys.argv[1:]))
