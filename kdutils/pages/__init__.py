"""What the chapters show of their runs, one module each: tables, figures and sentences. Reads records only, and never
imports torch."""
