"""Measure, plan, split and run, in one process or in all of a job."""
