"""sparseggm against code that a user would write without it, and against the memory limit: `python -m benchmarks`.

rows/     one function for each row of the table: the problem, ours, the peers, the goal
peers/    each peer as its own users would write it; a missing one is named, with the command that installs it
contest   runs a row: the answers must agree before anything is timed
timing    interleaved rounds, copies of memory, peak memory
report    the lines, JSON and markdown; figure: the picture
slopes    stated costs against measured ones, `python -m benchmarks.slopes`

No time is asserted. docs/benchmarks.md explains the rows.
"""
