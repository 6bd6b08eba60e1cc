"""The worker of an engine written in Python: torch, torch-compile, torch-autotune, jax or keras-tf.

Started by benches/dot.rs; answers lines of JSON as the workers in Rust do (benches/dot/worker.rs). Each engine offers one or more
natural ways of writing a product, and the fastest is used: for each case, and for each pass by itself.
"""

import gc
import json
import os
import sys
import time

ENGINE = sys.argv[1]
THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
EPSILON = 1e-6
DTYPES = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}

# Libraries print to stdout now and then; the driver's pipe is for answers alone.
ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow")
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ.update(CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu")
if THREADS == 1:
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"

import numpy as np  # After the settings above, as the libraries below.


def read(path, shape, dtype):
    return np.fromfile(path, dtype).reshape(shape)


class Torch:
    """Eager, or compiled in its default mode, or in the one that tries several kernels."""

    MODES = {"torch-compile": "default", "torch-autotune": "max-autotune"}

    def __init__(self):
        import torch

        self.torch = torch
        torch.set_num_threads(THREADS)
        self.mode = self.MODES.get(ENGINE)
        self.versions = f"torch {torch.__version__}"

    def inputs(self, case, paths):
        torch, name = self.torch, DTYPES[case["dtype"]]
        raw = (bytearray(open(path, "rb").read()) for path in paths)
        shapes = (case["lhs"], case["rhs"])
        return tuple(torch.frombuffer(x, dtype=getattr(torch, name)).reshape(shape).to(DEVICE) for x, shape in zip(raw, shapes))

    def products(self, case):
        """Ways of writing this product, by name."""
        torch, F, equation, (i, j) = self.torch, self.torch.nn.functional, case["einsum"], case["axes"]

        def by(product):
            if not case["normalize"]:
                return product
            return lambda x, y: product(F.normalize(x, dim=i, eps=EPSILON), F.normalize(y, dim=j, eps=EPSILON))

        einsum = by(lambda x, y: torch.einsum(equation, x, y))
        ways = {"einsum": einsum}
        if case["kind"] == "row":
            ways = {"einsum": lambda x, y: einsum(x, y).unsqueeze(1), "mul, sum": by(lambda x, y: (x * y).sum(1, keepdim=True))}
            if case["normalize"]:
                ways["cosine_similarity"] = lambda x, y: F.cosine_similarity(x, y, 1, EPSILON).unsqueeze(1)
        elif case["kind"] == "matvec":
            ways["bmm"] = by(lambda x, y: torch.bmm(y, x.unsqueeze(2)).squeeze(2))
        elif case["batch_dims"] == 0:
            ways["matmul"] = by(lambda x, y: x @ y.T)
        elif len(case["lhs"]) == 3:
            ways["bmm"] = by(lambda x, y: torch.bmm(x.mT if i == 1 else x, y.mT if j == 2 else y))
        if self.mode:
            # One way each, the last: the compiler rewrites them, and takes its time.
            torch._dynamo.reset()
            way, product = list(ways.items())[-1]
            ways = {way: torch.compile(product, dynamic=False, mode=self.mode)}
        return ways

    def passes(self, product, x, y):
        torch = self.torch

        def forward():
            with torch.no_grad():
                return product(x, y)

        ones = torch.ones_like(forward())

        def backward():
            u, v = x.detach().requires_grad_(), y.detach().requires_grad_()
            out = product(u, v)
            return out, *torch.autograd.grad(out, (u, v), ones)

        if DEVICE == "cpu":
            return forward, backward
        return self.finished(forward), self.finished(backward)

    def finished(self, call):
        """A call, and waiting for the device."""

        def finished():
            result = call()
            self.torch.cuda.synchronize()
            return result

        return finished

    def raw(self, x):
        return x.detach().cpu().contiguous().view(self.torch.uint8).numpy().tobytes()


class Jax:
    def __init__(self):
        import jax

        self.jax = jax
        jax.config.update("jax_enable_x64", True)  # For the cell in f64; the others keep the dtype of their inputs.
        self.versions = f"jax {jax.__version__}"

    def inputs(self, case, paths):
        jnp = self.jax.numpy
        dtype = jnp.dtype(DTYPES[case["dtype"]])
        return tuple(jnp.asarray(read(path, shape, dtype)) for path, shape in zip(paths, (case["lhs"], case["rhs"])))

    def products(self, case):
        jax, jnp, (i, j) = self.jax, self.jax.numpy, case["axes"]

        def unit(x, axis):
            if not case["normalize"]:
                return x
            # XLA sums bf16 in bf16 on the way back: over rows of 512 the gradient is wrong by a fifth of its terms.
            wide = x.astype(jnp.float32) if x.dtype == jnp.bfloat16 and case["kind"] == "row" else x
            square = jnp.maximum(jnp.sum(wide * wide, axis, keepdims=True), EPSILON**2)
            return (wide * jax.lax.rsqrt(square)).astype(x.dtype)

        einsum = lambda x, y: jnp.einsum(case["einsum"], unit(x, i), unit(y, j))
        if case["kind"] != "row":
            return {"einsum": einsum}
        plain = lambda x, y: jnp.sum(unit(x, 1) * unit(y, 1), 1, keepdims=True)
        return {"einsum": lambda x, y: einsum(x, y)[:, None], "mul, sum": plain}

    def passes(self, product, x, y):
        jax = self.jax
        forward = jax.jit(product)
        ones = jax.numpy.ones_like(forward(x, y))

        @jax.jit
        def backward(x, y, ones):
            out, pull = jax.vjp(product, x, y)
            return out, *pull(ones)

        return lambda: forward(x, y).block_until_ready(), lambda: jax.block_until_ready(backward(x, y, ones))

    def raw(self, x):
        return np.asarray(x).tobytes()


class KerasTensorflow:
    """The layer that `Dot` is named after, inside a graph."""

    def __init__(self):
        import keras
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(THREADS)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self.keras, self.tf = keras, tf
        self.versions = f"keras {keras.__version__}; tensorflow {tf.__version__}"

    def inputs(self, case, paths):
        tf = self.tf
        dtype = tf.as_dtype(DTYPES[case["dtype"]])
        return tuple(tf.constant(read(path, shape, dtype.as_numpy_dtype)) for path, shape in zip(paths, (case["lhs"], case["rhs"])))

    def products(self, case):
        layer = self.keras.layers.Dot(case["axes"], normalize=case["normalize"], dtype=DTYPES[case["dtype"]])
        if case["batch_dims"] == 1:
            return {"Dot": lambda x, y: layer([x, y])}
        # The layer always has a batch, so all pairs are written by Keras' operations; or as a batch of one.
        ops, (i, j) = self.keras.ops, case["axes"]
        unit = lambda x: ops.normalize(x, axis=1, epsilon=EPSILON) if case["normalize"] else x
        batch = self.keras.layers.Dot((i + 1, j + 1), normalize=case["normalize"], dtype=DTYPES[case["dtype"]])
        return {"matmul": lambda x, y: ops.matmul(unit(x), ops.transpose(unit(y))), "Dot": lambda x, y: batch([x[None], y[None]])[0]}

    def passes(self, product, x, y):
        tf = self.tf
        graph = tf.function(product, jit_compile=False)
        ones = tf.ones_like(graph(x, y))

        @tf.function(jit_compile=False)
        def backward(x, y, ones):
            with tf.GradientTape() as tape:
                tape.watch((x, y))
                out = product(x, y)
            return out, *tape.gradient(out, (x, y), ones)

        return lambda: graph(x, y), lambda: backward(x, y, ones)

    def raw(self, x):
        return x.numpy().tobytes()


def per_call(call, seconds):
    """Seconds per call, by the rules of `time` in benches/dot/worker.rs."""
    call()
    start = time.perf_counter()
    call()
    one = time.perf_counter() - start
    if one >= seconds:
        return one
    calls = int(min(max(seconds / one, 3), 1e5))
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def fastest(ways):
    """The name and the call of the fastest of several ways."""
    if len(ways) == 1:
        return next(iter(ways.items()))
    times = {name: min(per_call(call, 0.01) for _ in range(3)) for name, call in ways.items()}
    name = min(times, key=times.get)
    return name, ways[name]


def load(engine, case, paths, results):
    x, y = engine.inputs(case, paths)
    ways = {name: engine.passes(product, x, y) for name, product in engine.products(case).items()}
    forward, backward = (fastest({name: calls[i] for name, calls in ways.items()}) for i in (0, 1))
    out, *grads = backward[1]()
    for path, result in zip(results, (forward[1](), *grads)):
        with open(path, "wb") as file:
            file.write(engine.raw(result))
    note = f"forward: {forward[0]}; both: {backward[0]}"
    return {"forward": forward[1], "backward": backward[1]}, {"results": 3, "note": note}


def main():
    engine = {"torch": Torch, "torch-compile": Torch, "torch-autotune": Torch, "jax": Jax, "keras-tf": KerasTensorflow}[ENGINE]()
    calls = {}

    def answer(reply):
        print(json.dumps(reply), file=ANSWERS, flush=True)

    answer({"note": f"{engine.versions}; numpy {np.__version__}"})
    for line in sys.stdin:
        request = json.loads(line)
        if request["ask"] == "load":
            try:
                calls, reply = load(engine, request["case"], request["inputs"], request["results"])
            except Exception as error:  # Whatever a library refuses is a reason to skip, not to die.
                reply = {"skip": (str(error).strip() or repr(error)).splitlines()[0]}
            answer(reply)
        elif request["ask"] == "time":
            answer({"us": 1e6 * per_call(calls[request["pass"]], request["seconds"])})
        else:
            calls = {}
            gc.collect()
            answer({})


main()
