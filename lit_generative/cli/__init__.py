"""What `train.py` and its subcommands share."""
