"""One self-contained HTML page to judge and compare trained models by."""
