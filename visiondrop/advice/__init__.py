"""Which method and how many tokens for a user's own pictures: the unpruned model's answers are the reference."""
