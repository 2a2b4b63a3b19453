"""Do planning, resuming and memory stay small when a dataset is large?"""
