"""What a compiled Triton kernel takes of a GPU, read from its code."""

import re
import subprocess
from pathlib import Path


def usage(compiled, folder):
    """Registers, instructions that spill them, and shared memory [B]."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    file = Path(folder) / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])

    def run(tool, *options):
        command = [tools / tool, *options, file]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    registers = re.search(r"REG:(\d+)", run("cuobjdump", "-res-usage"))
    spills = re.findall(r"\s(?:LDL|STL)[\s.]", run("nvdisasm", "-c"))
    return {
        "registers": int(registers[1]),
        "spills": len(spills),
        "shared": compiled.metadata.shared,
    }
