"""Alert packets: reading archives, decoding to columns, writing enriched alerts."""
