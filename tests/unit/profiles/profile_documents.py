"""Small profiles in the forms that others write, made here."""

from __future__ import annotations

import gzip
import json

WAITS = {"sync": 5, "scalar": 4, "vector": 6, "tensor": 7}


class Document:
    """A neuron-profile document: instructions of one core in the order in which they are added."""

    def __init__(self):
        self.instructions, self.packets, self.throttle, self.pc = [], [], [], {}

    def add(self, engine, opcode, operands="", start=0, duration=1, kernel=True, **more):
        """An instruction; times in nanoseconds."""
        pc = self.pc[engine] = self.pc.get(engine, -1) + 1
        row = {
            "subgraph": "sg00", "subgroup": engine, "opcode": opcode, "operands": operands, "timestamp": start,
            "duration": duration, "pc": pc,
        }  # fmt: skip
        if kernel:
            row["compiler_pc"] = pc
        self.instructions.append({**row, **more})
        return self

    def packet(self, start, duration, size, kind="hardware_dynamic", engine=64, queue=0):
        row = {
            "subgraph": "sg00", "timestamp": start, "duration": duration, "transfer_size": size, "queue_type": kind,
            "dma_engine": str(engine), "dma_queue": str(queue),
        }  # fmt: skip
        self.packets.append(row)
        return self

    def limit(self, start, k, n=8):
        self.throttle.append({"subgraph": "sg00", "timestamp": start, "k": k, "n": n})
        return self

    def dictionary(self):
        return {
            "instruction": self.instructions,
            "dma": self.packets,
            "ham": self.throttle,
            "metadata": [{"first_hw_timestamp": 0}],
        }

    def write(self, path):
        """Write it to ``path``, compressed where the name says so."""
        data = json.dumps(self.dictionary()).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return path


def tensor(name, dtype="fp32", address=0x4000, elements=512):
    return f"{name}={dtype}@{address:#x}[1,1,1,1][{elements},1,1,1]"


def copy(elements=512, source=0x2000000, waits="", raises=""):
    """Operands of a float32 COPY out of PSUM into SBUF."""
    return f"{waits} {raises} {tensor('src', address=source, elements=elements)} {tensor('dst', elements=elements)}"


def load(size=2048, count=128, semaphore=8, waits=""):
    """Operands of a DMA from HBM into SBUF."""
    return (
        f"{waits} semaphore={semaphore} sem_increment=16 src_elem_size={size} dst_elem_size={size} "
        f"src_pattern=[{size},1][{count},1] dst_pattern=[262144,1][{count},1] src_addr_imm=0x8005c03b0000 "
        "dst_addr_imm=0x802000036500"
    )


def store(size=2048, count=128, semaphore=9, waits=""):
    """Operands of a DMA from SBUF into HBM."""
    return (
        f"{waits} semaphore={semaphore} sem_increment=16 src_elem_size={size} dst_elem_size={size} "
        f"src_pattern=[262144,1][{count},1] dst_pattern=[{size},1][{count},1] src_addr_imm=0x802000036500 "
        "dst_addr_imm=0x8005c03b0000"
    )
