"""Scores from verdicts, and their statistics."""
