"""Catalogues on disk and the crossmatch of positions with them."""
