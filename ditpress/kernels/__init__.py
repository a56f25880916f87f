"""Low-bit formats and the ops that a compressed transformer runs on."""
