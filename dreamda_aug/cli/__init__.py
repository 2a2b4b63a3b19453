"""The command `dreamda`: one module for each group of commands, each one library call."""
