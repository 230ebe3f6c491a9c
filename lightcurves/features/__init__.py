"""The 178 features of ALeRCE's light-curve classifier, computed for many objects at once."""
