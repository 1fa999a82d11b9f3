"""What a user runs: the command line, its verbs and the engines."""
