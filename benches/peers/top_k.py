"""The worker of an engine written in Python: faiss, usearch, numpy, torch, jax, or numpy-matmul, which leaves the search out.

Started by benches/top_k.rs; answers lines of JSON as the workers in Rust do.
"""

import json
import os
import sys
import time

ENGINE = sys.argv[1]

# Libraries print to stdout now and then; the driver's pipe is for answers alone.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

os.environ.update(CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu")

import numpy as np  # noqa: E402


def faiss_flat(queries, items, k):
    import faiss

    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    return lambda: index.search(queries, k)[1], f"faiss {faiss.__version__}"


def usearch_exact(queries, items, k):
    import usearch
    from usearch.index import MetricKind, search

    threads = os.cpu_count()
    return lambda: search(items, queries, k, MetricKind.IP, exact=True, threads=threads).keys, f"usearch {usearch.__version__}"


def numpy_partition(queries, items, k):
    rows = np.arange(len(queries))[:, None]

    def search():
        scores = queries @ items.T
        best = np.argpartition(scores, -k, 1)[:, -k:]
        return best[rows, np.argsort(-scores[rows, best], 1)]

    return search, f"numpy {np.__version__}"


def numpy_matmul(queries, items, k):
    return lambda: queries @ items.T, None


def torch_topk(queries, items, k):
    import torch

    x, y = torch.from_numpy(queries), torch.from_numpy(items)
    return lambda: torch.topk(x @ y.T, k).indices.numpy(), f"torch {torch.__version__}"


def jax_topk(queries, items, k):
    import jax

    x, y = jax.numpy.asarray(queries), jax.numpy.asarray(items)
    search = jax.jit(lambda x, y: jax.lax.top_k(x @ y.T, k)[1])
    return lambda: np.asarray(search(x, y)), f"jax {jax.__version__}"


ENGINES = {
    "faiss": faiss_flat,
    "usearch": usearch_exact,
    "numpy": numpy_partition,
    "numpy-matmul": numpy_matmul,
    "torch": torch_topk,
    "jax": jax_topk,
}


def per_call(call, seconds):
    """Seconds per call, by the rules of `time` in benches/top_k.rs."""
    call()
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < seconds:
        call()
        calls += 1
    return (time.perf_counter() - start) / calls


def main():
    def answer(**reply):
        print(json.dumps(reply), file=ANSWERS, flush=True)

    engine = ENGINES[ENGINE]
    answer(note=engine(np.ones((1, 8), np.float32), np.ones((8, 8), np.float32), 1)[1])
    search = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["ask"] == "time":
            answer(us=1e6 * per_call(search, request["seconds"]))
            continue
        cell = request["cell"]
        read = lambda name, rows: np.fromfile(request[name], np.float32).reshape(cell[rows], cell["columns"])
        try:
            search, _ = engine(read("queries", "queries"), read("items", "items"), cell["k"])
            np.ascontiguousarray(search(), np.int64).tofile(request["hits"])
            answer()
        except Exception as error:  # Whatever a library refuses is a reason to skip, not to die.
            answer(skip=(str(error).strip() or repr(error)).splitlines()[0])


main()
