"""From a command line to finished answers: prepare (checks), drive (one run), process (one process), launch (several)."""
