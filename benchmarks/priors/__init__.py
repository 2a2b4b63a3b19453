"""Priors and judges of the accuracy study, and how they were made."""
