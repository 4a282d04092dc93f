"""The verbs of the command line, one file each; a verb imports what it needs only when it is called."""
