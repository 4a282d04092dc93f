"""`python -m persephonee`: the command line."""

from persephonee.commands.application import main

if __name__ == "__main__":
    main()
