"""Worlds in three and four dimensions: furniture, what stands and what moves, and who judges it (extra `worlds`)."""
