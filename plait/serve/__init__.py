"""A server with OpenAI's endpoints, and a page to play with, over one `plait.generate.Generator`."""
