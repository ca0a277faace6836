"""The commands of the command line, one file a stage of the loop."""
