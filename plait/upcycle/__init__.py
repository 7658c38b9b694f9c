"""From what exists: dense language models become towers."""
