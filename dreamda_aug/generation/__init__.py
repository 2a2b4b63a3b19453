"""From seed images to synthetic images: cache, inversion, sampling, guards, calibration."""
