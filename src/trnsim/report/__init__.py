"""What a person or a program sees of kernel calls: terminal, JSON, Perfetto, HTML."""

from trnsim.report.call import KernelCall

__all__ = ["KernelCall"]
