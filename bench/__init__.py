"""Measurements: each beside a baseline in the same run, with the machine and versions they were taken on."""
