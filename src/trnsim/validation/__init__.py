"""Predicted beside measured: published kernels from local checkouts, timed here and compared with published times.

``rows`` reads measurements, ``exclusion`` says which of them are no run of a given kernel, ``recipes`` turn the others
into ``cases`` (which kernel, which arguments), ``run`` times those, ``summary`` compares. Measurements are facts in
``kernel_latency.csv``, each with its source; the kernels themselves stay in their checkouts.
"""
