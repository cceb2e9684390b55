"""What the book's runs cost, measured side by side: `python -m benchmarks`, or `make bench`."""
