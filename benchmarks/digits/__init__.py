"""Does AMST learn from synthetic digits with wrong seed labels?"""
