"""The gate: measured figures against a baseline in the user's repository, by rules that are data."""
