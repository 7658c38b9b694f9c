"""Pages for a browser, and the charts on them."""
