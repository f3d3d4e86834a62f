"""Random numbers for pauses, so that what began together does not go on together.

They are apart from those of the module `random`, which belong to the program: one that seeds them, such as a
test that runs the server in its process, gets what it expects. And they have no state, which processes that
were forked from one would share, and so pause in step.
"""

from __future__ import annotations

from random import SystemRandom

jitter = SystemRandom()
