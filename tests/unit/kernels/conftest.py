"""Lets these tests import ``kernel_harness``: test files are imported by path, not from a package. And its table.

``TRNSIM_KERNEL_RESULTS=FILE`` writes what was compared as JSON: [kernel, format, results, largest error] each.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def pytest_terminal_summary(terminalreporter):
    """What was compared, where more cases than usual were drawn."""
    import kernel_harness

    if "TRNSIM_KERNEL_RESULTS" in os.environ:
        rows = [[*key, count, error] for key, (_, count, _, error) in sorted(kernel_harness.compared.items())]
        Path(os.environ["TRNSIM_KERNEL_RESULTS"]).write_text(json.dumps(rows))
    if kernel_harness.TIMES == 1 or not kernel_harness.compared:
        return
    terminalreporter.section("kernels: results compared")
    line = "{:<28}{:<20}{:<32}{:>8}{:>16}{:>18}".format
    terminalreporter.write_line(
        line("kernel", "format", "chip/cores", "results", "largest error", "of what is allowed")
    )
    for (kernel, dtype), (places, count, share, error) in sorted(kernel_harness.compared.items()):
        where = " ".join(f"{chip}/{cores}" for chip, cores in sorted(places))
        terminalreporter.write_line(line(kernel, dtype, where, count, f"{error:.1e}", f"{share:.2f}"))
    total = sum(record[1] for record in kernel_harness.compared.values())
    terminalreporter.write_line(f"{total} results of {len({k for k, _ in kernel_harness.compared})} kernels")
