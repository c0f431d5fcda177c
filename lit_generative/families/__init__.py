"""What several papers share under Lightning."""
