"""What the five papers claim, checked on synthetic-v1: systems are run, claims are orderings of their scores.

`system` says what is run, `claim` what is claimed and how it fell; a file for each paper holds its systems and claims.
Running, scoring and judging them is `jobs.benchmark_papers`.
"""
