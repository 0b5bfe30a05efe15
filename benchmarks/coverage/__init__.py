"""Tiny models of many architectures, and whether they are captured exactly."""
