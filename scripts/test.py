"""The tests. Options go to pytest."""

import sys

import environment

environment.ready()
environment.run("-m", "pytest", "--numprocesses=2", *sys.argv[1:])
