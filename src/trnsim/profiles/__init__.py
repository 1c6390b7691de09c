"""Profiles, measured or predicted: read, run through our machine again, compared with each other.

``read`` makes one form (``Profile``, columns) of the vendor's profiles and of our own reports; ``replay`` gives the
measured streams our durations; ``diff`` aligns two profiles; ``tables`` compares costs with published tables of
instructions.
"""
