"""What every training step and run needs, whatever the model."""
