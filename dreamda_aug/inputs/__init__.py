"""What users hand over: images, labels, captions, prompts, datasets and lists of files."""
