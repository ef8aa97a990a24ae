"""Benchmarks: what compress reaches, each beside a named peer in the same run.

`python -m benchmarks NAME…` runs `benchmarks/NAME.py`. Every module here that does not begin with an underscore is one:

    \"\"\"One line: what is compared.            (shown by --list)

    Protocol. Time: 3 minutes on one core; with --full 2 hours.
    \"\"\"
    def run(bench: Bench) -> Iterable[Figure]: ...

`Bench` gives the mode, the seeds, the data and the means to tell how far the work is; `Figure` says what a figure is
and when its goal is met (both in `benchmarks.harness`). Heavy modules are imported inside `run`, so that `--list` is
quick. The harness adds the time, the versions and the kind of machine, and writes `benchmarks/results.json` and
`docs/benchmarks.md`.
"""
