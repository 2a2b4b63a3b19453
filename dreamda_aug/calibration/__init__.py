"""How far a model may move images: measured on the user's own images."""
