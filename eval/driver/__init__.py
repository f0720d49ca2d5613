"""From a command line to finished answers: settings, processes, one process."""
