"""Shared code of the book: distilling BERT encoders with STARK, Pea-KD and KSM."""
