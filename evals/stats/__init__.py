"""What figures and their differences say: intervals, comparisons, and the verdicts of one page."""
