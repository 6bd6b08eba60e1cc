"""Compiles CUDA sources without a GPU: NVRTC makes PTX of them, ptxas machine code. Fails where one does not compile, or spills more
registers than a few that are outside of its loops.

    python compile.py FOLDER    # in an environment with requirements.txt
"""

import ctypes
import multiprocessing
import pathlib
import re
import subprocess
import sys

import nvidia

ARCHITECTURES = ["80", "90a"]
WHEELS = pathlib.Path(list(nvidia.__path__)[0])
PTXAS = WHEELS / "cuda_nvcc/bin/ptxas"
MOST_SPILLED = 128  # bytes
INCLUDE = f"--include-path={WHEELS / 'cuda_runtime/include'}"


def check(nvrtc, code, program=None):
    """Raises with NVRTC's own log."""
    if code == 0:
        return
    log = b""
    if program:
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        log = log.value
    raise RuntimeError(f"NVRTC: error {code}\n{log.decode()}")


def ptx(source, architecture):
    nvrtc = ctypes.CDLL(str(WHEELS / "cuda_nvrtc/lib/libnvrtc.so.12"))
    program = ctypes.c_void_p()
    check(nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, None, 0, None, None))
    options = [f"--gpu-architecture=compute_{architecture}".encode(), INCLUDE.encode()]
    compiled = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    check(nvrtc, compiled, program)
    size = ctypes.c_size_t()
    check(nvrtc, nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    check(nvrtc, nvrtc.nvrtcGetPTX(program, text))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return text.value


def compile(path):
    """What is wrong with a source, if anything, and the most registers that its kernel takes and bytes that it spills."""
    registers, spilled = 0, 0
    for architecture in ARCHITECTURES:
        try:
            assembled = path.with_suffix(f".{architecture}.ptx")
            assembled.write_bytes(ptx(path.read_bytes(), architecture))
        except RuntimeError as error:
            return f"{path.name}, sm_{architecture}: {error}", 0, 0
        command = [PTXAS, "-v", f"-arch=sm_{architecture}", assembled, "-o", "/dev/null"]
        result = subprocess.run(command, capture_output=True, text=True)
        spills, used = (re.search(pattern, result.stderr) for pattern in [r"(\d+) bytes spill stores", r"Used (\d+) registers"])
        if result.returncode or not spills or not used or int(spills[1]) > MOST_SPILLED:
            return f"{path.name}, sm_{architecture}: {result.stderr}", 0, 0
        registers, spilled = max(registers, int(used[1])), max(spilled, int(spills[1]))
    return None, registers, spilled


if __name__ == "__main__":
    sources = sorted(pathlib.Path(sys.argv[1]).glob("*.cu"))
    if not sources:
        sys.exit(f"error: no CUDA source in {sys.argv[1]}")
    with multiprocessing.Pool() as pool:
        results = pool.map(compile, sources, chunksize=1)
    faults = [fault for fault, _, _ in results if fault]
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{len(sources) - len(faults)} of {len(sources)} compiled for sm_{' and sm_'.join(ARCHITECTURES)}")
    for what, place in [("registers", 1), ("bytes spilled", 2)]:
        most, name = max((result[place], path.name) for result, path in zip(results, sources))
        print(f"at most {most} {what}: {name}")
    sys.exit(bool(faults))
