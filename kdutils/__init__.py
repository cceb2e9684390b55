"""Shared code of the book: distilling BERT encoders with STARK, Pea-KD and KSM."""

import warnings

# A library asks for notebook widgets at its import; bars of text are what a page that is rendered later can keep.
warnings.filterwarnings("ignore", message="IProgress not found")
