"""What is shown to people: the dataset card, the HTML page, pictures."""
