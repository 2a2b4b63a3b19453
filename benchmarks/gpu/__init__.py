"""All that one GPU can tell in nine minutes."""
