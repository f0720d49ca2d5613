"""What a run leaves behind: answers, rows, fingerprints."""
