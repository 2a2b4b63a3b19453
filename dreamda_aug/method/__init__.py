"""The method: pure torch, no files. The paper, readable in one sitting."""
