"""Every family of diffusion transformers, tiny and random, through the same checks."""
