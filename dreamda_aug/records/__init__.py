"""How a synthetic dataset lies on disk: manifest, facts, images, counts."""
