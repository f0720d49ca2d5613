"""What a person looks at: one question about one picture, and a drawing of what was kept."""
