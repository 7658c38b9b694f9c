"""Simulated robots: Meta-World's tasks, demonstrations of them, and policies that try them."""
