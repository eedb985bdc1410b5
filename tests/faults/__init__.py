"""Campaigns of faults: see `campaign`."""
