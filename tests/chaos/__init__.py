"""The chaos suite: each fault as a row of a table, with load running, judged from outside.

`python -m tests.chaos` runs the long form and writes a report; `tests/test_chaos.py` the short one.
Nothing here may look into a broker's memory: answers, upstream counters, metrics and log lines are
what its users and operators have, and so is what a row may judge by.
"""
