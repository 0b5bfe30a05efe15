"""The main job: BERT over two unequal devices, beside plain torch. Options go to the example."""

import sys

import environment

environment.ready()
environment.run("examples/word_senses.py", *sys.argv[1:])
