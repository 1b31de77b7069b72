"""One verb a file: what the command line does, without printing."""
