"""Low-bit formats and the one op that every compressed linear runs on."""
