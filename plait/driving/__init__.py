"""Driving: traffic on a straight road, what happens in it, drivers that are tested in it (extra `driving`)."""
