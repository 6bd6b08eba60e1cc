"""Compiles CUDA sources without a GPU: NVRTC makes PTX of them, ptxas machine code. Fails where one does not compile, or spills more
registers than a few that are outside of its loops.

    python compile.py FOLDER    # in an environment with requirements.txt
"""

import ctypes
import itertools
import multiprocessing
import pathlib
import re
import subprocess
import sys
import tempfile

import nvidia

ARCHITECTURES = ["80", "90a"]
WHEELS = pathlib.Path(list(nvidia.__path__)[0])
PTXAS = WHEELS / "cuda_nvcc/bin/ptxas"
MOST_SPILLED = 128  # bytes
INCLUDE = f"--include-path={WHEELS / 'cuda_runtime/include'}"
# Sources that are compiled as one program: reading CUDA's headers takes longer than compiling a kernel.
TOGETHER = 30


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


def assemble(text, architecture):
    """The place of each kernel in its program, if it has one, the bytes that it spills, and its registers."""
    with tempfile.NamedTemporaryFile(suffix=".ptx") as file:
        file.write(text)
        file.flush()
        command = [PTXAS, "-v", f"-arch=sm_{architecture}", file.name, "-o", "/dev/null"]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"ptxas: {result.stderr}")
    pattern = r"Compiling entry function '(?:kernel_(\d+)_)?.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    return re.findall(pattern, result.stderr, re.DOTALL)


def includes(path):
    return tuple(line for line in path.read_text().splitlines() if line.startswith("#include"))


def program(paths):
    """One program of sources with the same headers: a namespace for each, and a name for its kernel that no other has. One as it is."""
    if len(paths) == 1:
        return paths[0].read_bytes()
    parts = list(includes(paths[0]))
    for i, path in enumerate(paths):
        lines = ["" if line.startswith("#include") else line for line in path.read_text().splitlines()]
        source = re.sub(r"(__global__\s+void\s+__launch_bounds__\([^)]*\)\s+)(\w+)", rf"\1kernel_{i}_\2", "\n".join(lines))
        parts.append(f'namespace source_{i} {{\n#line 1 "{path.name}"\n{source}\n}}')
    return "\n".join(parts).encode()


def compile(task):
    """What is wrong with sources, if anything, and the registers that each kernel takes and bytes that it spills."""
    paths, architecture = task
    try:
        kernels = assemble(ptx(program(paths), architecture), architecture)
        if len(kernels) != len(paths):
            raise RuntimeError(f"{len(kernels)} kernels")
    except RuntimeError as error:
        if len(paths) == 1:
            return [f"{paths[0].name}, sm_{architecture}: {error}"], []
        faults, used = zip(*(compile(([path], architecture)) for path in paths))
        return sum(faults, []), sum(used, [])
    used = [(paths[int(i or 0)].name, int(registers), int(spilled)) for i, spilled, registers in kernels]
    faults = [f"{name}, sm_{architecture}: {spilled} bytes spilled" for name, _, spilled in used if spilled > MOST_SPILLED]
    return faults, used


if __name__ == "__main__":
    sources = sorted(pathlib.Path(sys.argv[1]).glob("*.cu"))
    if not sources:
        sys.exit(f"error: no CUDA source in {sys.argv[1]}")
    alike = [list(paths) for _, paths in itertools.groupby(sorted(sources, key=includes), key=includes)]
    # One of each by itself, as CubeCL gives it to the driver.
    groups = [paths[:1] for paths in alike]
    groups += [paths[i : i + TOGETHER] for paths in alike for i in range(1, len(paths), TOGETHER)]
    tasks = [(paths, architecture) for paths in groups for architecture in ARCHITECTURES]
    with multiprocessing.Pool() as pool:
        faults, used = zip(*pool.map(compile, tasks, chunksize=1))
    faults, used = sum(faults, []), sum(used, [])
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{len(used)} of {len(sources) * len(ARCHITECTURES)} compiled: {len(sources)} sources for sm_{' and sm_'.join(ARCHITECTURES)}")
    for what, place in [("registers", 1), ("bytes spilled", 2)]:
        most = max(used, key=lambda kernel: kernel[place], default=None)
        if most:
            print(f"at most {most[place]} {what}: {most[0]}")
    sys.exit(bool(faults))
