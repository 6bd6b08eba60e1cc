"""The same 20 faults and 10 right but hard functions, handed to other frameworks' gradient checkers.

    pip install -r requirements.txt
    python compare.py torch jax tensorflow rust table

Each engine runs in a process of its own and writes results/ENGINE.json; `rust` is burn-gradcheck and the crate gradcheck, by cargo; `table`
writes the table of README.md from results/, between its markers.

Every checker has its defaults and f64, except where the case is about another dtype. A fault is caught if the checker complains of it
and not of the same function with its right backward pass; "either way" is a complaint of both. The cases of Burn are in
tests/suite/gradcheck_compared/, under the same names.
"""

import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results"


def wave(count, phase):
    """Distinct numbers of both signs: those of tests/suite/run.rs."""
    return [1.3 * math.sin(phase + i * 1.618) + 0.2 for i in range(1, count + 1)]


def unit(count, at):
    return [float(i == at) for i in range(count)]


class Case:
    """A function of some inputs. A fault has a wrong and a right backward pass: `backward(xp, g, *inputs)`."""

    def __init__(self, name, forward, inputs, wrong=None, right=None, where=None, dtype="f64", need=None):
        self.name, self.forward, self.inputs, self.wrong, self.right = name, forward, inputs, wrong, right
        # The numbers that are wrong, as (input, flat index); all of one input where only its number is given.
        self.where = where
        self.dtype = dtype
        # What the framework must have for the case to exist there: strides, second, forward mode.
        self.need = need


calls = 0


def unsteady(xp, g, x):
    global calls
    calls += 1
    return (g * 2 * x * (1 + 1e-9 * calls),)


def norm(xp, x):
    return xp.sqrt(xp.rows(x * x))


def project(xp, g, x):
    u = x / norm(xp, x)
    return ((g - u * xp.rows(g * u)) / norm(xp, x),)


def scaled(at, count):
    return lambda xp, g, x: (g * xp.cos(x) * (1 + 0.01 * xp.like(x, unit(count, at))),)


def layers(xp, w1, b1, w2, b2):
    return xp.tanh(xp.like(w1, wave(8, 0.9), (2, 4)) @ w1 + b1) @ w2 + b2


def layers_backward(sign):
    def backward(xp, g, w1, b1, w2, b2):
        x = xp.like(w1, wave(8, 0.9), (2, 4))
        h = xp.tanh(x @ w1 + b1)
        inner = (g @ xp.turn(w2)) * (1 - h * h)
        return xp.turn(x) @ inner, sign * xp.columns(inner), xp.turn(h) @ g, xp.columns(g)

    return backward


W = wave(16, 0.5)
X = (wave(12, 0.1), (3, 4))
Y = (wave(12, 0.7), (3, 4))
ROW = (wave(7, 0.3), (7,))
MANY = (wave(10_000, 0.2), (10_000,))

FAULTS = [
    Case("a flipped sign", lambda xp, x: xp.tanh(x), [X],
         lambda xp, g, x: (-g * (1 - xp.tanh(x) * xp.tanh(x)),), lambda xp, g, x: (g * (1 - xp.tanh(x) * xp.tanh(x)),), 0),
    Case("a missing term of a product rule", lambda xp, x: x * xp.sin(x), [ROW],
         lambda xp, g, x: (g * x * xp.cos(x),), lambda xp, g, x: (g * (xp.sin(x) + x * xp.cos(x)),), 0),
    Case("0.01 % too much", lambda xp, x: xp.exp(x), [X],
         lambda xp, g, x: (g * xp.exp(x) * 1.0001,), lambda xp, g, x: (g * xp.exp(x),), 0),
    Case("two gradients swapped", lambda xp, x, y: x * y, [X, Y],
         lambda xp, g, x, y: (g * x, g * y), lambda xp, g, x, y: (g * y, g * x), 0),
    Case("a transposed gradient", lambda xp, x: xp.total(x * xp.like(x, W, (4, 4))), [(wave(16, 0.2), (4, 4))],
         lambda xp, g, x: (g * xp.turn(xp.like(x, W, (4, 4))),), lambda xp, g, x: (g * xp.like(x, W, (4, 4)),), 0),
    Case("one number of 12 off by 1 %", lambda xp, x: xp.sin(x), [(wave(12, 0.1), (12,))],
         scaled(7, 12), lambda xp, g, x: (g * xp.cos(x),), (0, 7)),
    Case("one number of 10,000 off by 1 %", lambda xp, x: xp.total(xp.sin(x)), [MANY],
         scaled(7_654, 10_000), lambda xp, g, x: (g * xp.cos(x),), (0, 7_654)),
    Case("an input without its gradient", lambda xp, x, y: x * y, [X, Y],
         lambda xp, g, x, y: (g * y, xp.none(y)), lambda xp, g, x, y: (g * y, g * x), 1),
    Case("a norm without its projection", lambda xp, x: x / norm(xp, x), [X],
         lambda xp, g, x: (g / norm(xp, x),), project, 0),
    Case("NaN at one number", lambda xp, x: x * xp.abs(x), [([1.0, 0.0, -2.0], (3,))],
         lambda xp, g, x: (g * 2 * xp.abs(x) * (x / x),), lambda xp, g, x: (g * 2 * xp.abs(x),), (0, 1)),
    Case("a tiny gradient, 1e-12, of the wrong sign", lambda xp, x: 1e-12 * xp.tanh(x), [X],
         lambda xp, g, x: (-g * 1e-12 * (1 - xp.tanh(x) * xp.tanh(x)),),
         lambda xp, g, x: (g * 1e-12 * (1 - xp.tanh(x) * xp.tanh(x)),), 0),
    Case("a constant added", lambda xp, x: x * x, [ROW],
         lambda xp, g, x: (g * 2 * x + 1e-3,), lambda xp, g, x: (g * 2 * x,), 0),
    Case("not linear in the cotangent", lambda xp, x: x * x, [ROW],
         lambda xp, g, x: (g * xp.abs(g) * 2 * x,), lambda xp, g, x: (g * 2 * x,), 0),
    Case("another gradient at each call, by 1e-9", lambda xp, x: x * x, [ROW],
         unsteady, lambda xp, g, x: (g * 2 * x,), 0),
    Case("strides ignored", lambda xp, x: x * x, [X],
         lambda xp, g, x: (g * 2 * xp.memory(x),), lambda xp, g, x: (g * 2 * x,), 0, need="strides"),
    Case("digits lost in f32 only", lambda xp, x: -xp.cos(x), [ROW],
         lambda xp, g, x: (g * ((xp.sin(x) + 1e5) - 1e5),), lambda xp, g, x: (g * xp.sin(x),), 0, dtype="f32"),
    Case("a factor of 1.5 in bf16 only", lambda xp, x: xp.exp(x), [ROW],
         lambda xp, g, x: (g * xp.exp(x) * (1.5 if xp.is_bf16(x) else 1.0),), lambda xp, g, x: (g * xp.exp(x),), 0, dtype="bf16"),
    Case("one parameter of four of a model", layers,
         [(wave(12, 0.1), (4, 3)), (wave(3, 0.4), (3,)), (wave(6, 0.7), (3, 2)), (wave(2, 1.0), (2,))],
         layers_backward(-1), layers_backward(1), 1),
    Case("a wrong second derivative", lambda xp, x: xp.sin(x), [ROW],
         lambda xp, g, x: (g * xp.cos(xp.stop(x)),), lambda xp, g, x: (g * xp.cos(x),), 0, need="second"),
    Case("a wrong sign in forward mode", lambda xp, x: xp.sin(x), [ROW],
         lambda xp, t, x: -t * xp.cos(x), lambda xp, t, x: t * xp.cos(x), 0, need="forward"),
]

RIGHT = [
    Case("1 / x at 5e-6", lambda xp, x: 1 / x, [([5e-6, 0.3, -2.0], (3,))]),
    Case("log x at 1e-8", lambda xp, x: xp.log(x), [([1e-8, 0.3, 2.0], (3,))]),
    Case("log x from 1e-30 to 1e20 in one tensor", lambda xp, x: xp.log(x), [([1e-30, 1e-3, 2.0, 1e20], (4,))]),
    Case("sin(1e8 x)", lambda xp, x: xp.sin(1e8 * x), [([0.1, 0.2, 0.3], (3,))]),
    Case("x² at 1e8", lambda xp, x: x * x, [([1e8, 1.0000001e8, -1e8], (3,))]),
    Case("x / max(‖x‖, 1e-6) just above the floor", lambda xp, x: x / xp.at_least(norm(xp, x), 1e-6), [([9e-7, -1.2e-6], (1, 2))]),
    Case("relu with one zero among 12", lambda xp, x: xp.relu(x), [(wave(5, 0.1) + [0.0] + wave(6, 0.7), (12,))]),
    Case("dropout", lambda xp, x: xp.dropout(x), [X]),
    Case("sin x in f32", lambda xp, x: xp.sin(x), [ROW], dtype="f32"),
    Case("exp x in bf16", lambda xp, x: xp.exp(x), [ROW], dtype="bf16"),
]


class Torch:
    name, package, how = "torch", "torch", "`gradcheck(f, inputs)`, `gradgradcheck`, `check_forward_ad`"
    has = {"strides", "second", "forward"}

    def __init__(self):
        import torch

        self.np = torch
        self.dtypes = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16}
        for same in ["tanh", "sin", "cos", "exp", "log", "sqrt", "abs", "relu"]:
            setattr(self, same, getattr(torch, same))
        self.total = torch.sum

    def like(self, x, values, shape=None):
        return self.np.tensor(values, dtype=x.dtype).reshape(shape or x.shape)

    def rows(self, x):
        return x.sum(1, keepdim=True)

    def columns(self, x):
        return x.sum(0)

    def turn(self, x):
        return x.transpose(0, 1)

    def at_least(self, x, floor):
        return x.clamp_min(floor)

    def none(self, x):
        return None

    def stop(self, x):
        return x.detach()

    def memory(self, x):
        return x.as_strided(x.shape, self.np.empty(x.shape).stride())

    def is_bf16(self, x):
        return x.dtype == self.np.bfloat16

    def dropout(self, x):
        return self.np.nn.functional.dropout(x, 0.4)

    def custom(self, forward, backward, forward_mode):
        xp = self

        class Custom(self.np.autograd.Function):
            @staticmethod
            def forward(*xs):
                return forward(xp, *xs)

            @staticmethod
            def setup_context(ctx, inputs, output):
                ctx.save_for_backward(*inputs)
                ctx.save_for_forward(*inputs)

            @staticmethod
            def backward(ctx, g):
                x = ctx.saved_tensors
                return (g * xp.cos(x[0]),) if forward_mode else backward(xp, g, *x)

            if forward_mode:

                @staticmethod
                def jvp(ctx, t):
                    return backward(xp, t, *ctx.saved_tensors)

        return Custom.apply

    def check(self, f, inputs, dtype, need):
        tensors = [self.np.tensor(v, dtype=self.dtypes[dtype]).reshape(s).requires_grad_() for v, s in inputs]
        check = self.np.autograd.gradgradcheck if need == "second" else self.np.autograd.gradcheck
        options = {"check_forward_ad": True} if need == "forward" else {}
        if need == "second":
            self.np.manual_seed(0)
        assert check(f, tuple(tensors), **options)

    def named(self, message):
        input_ = re.search(r"with respect to input (\d+)", message)
        return [(int(input_[1]), None)] if input_ else []


class Jax:
    name, package, how = "jax", "jax", "`check_grads(f, args, order=1, modes=(\"rev\",))`, `order=2`, `modes=(\"fwd\",)`"
    has = {"second", "forward"}

    def __init__(self):
        import jax

        jax.config.update("jax_enable_x64", True)
        import jax.numpy as jnp

        self.jax, self.np = jax, jnp
        self.dtypes = {"f64": jnp.float64, "f32": jnp.float32, "bf16": jnp.bfloat16}
        for same in ["tanh", "sin", "cos", "exp", "log", "sqrt", "abs"]:
            setattr(self, same, getattr(jnp, same))
        self.total, self.relu, self.stop = jnp.sum, jax.nn.relu, jax.lax.stop_gradient

    def like(self, x, values, shape=None):
        return self.np.array(values, dtype=x.dtype).reshape(shape or x.shape)

    def rows(self, x):
        return x.sum(1, keepdims=True)

    def columns(self, x):
        return x.sum(0)

    def turn(self, x):
        return x.T

    def at_least(self, x, floor):
        return self.np.maximum(x, floor)

    def none(self, x):
        return self.np.zeros_like(x)

    def is_bf16(self, x):
        return x.dtype == self.np.bfloat16

    def dropout(self, x):
        kept = self.jax.random.bernoulli(self.jax.random.key(0), 0.6, x.shape)
        return self.np.where(kept, x / 0.6, 0)

    def custom(self, forward, backward, forward_mode):
        if forward_mode:
            f = self.jax.custom_jvp(lambda x: forward(self, x))
            f.defjvp(lambda x, t: (forward(self, *x), backward(self, *t, *x)))
            return f
        f = self.jax.custom_vjp(lambda *xs: forward(self, *xs))
        f.defvjp(lambda *xs: (forward(self, *xs), xs), lambda xs, g: tuple(backward(self, g, *xs)))
        return f

    def check(self, f, inputs, dtype, need):
        from jax.test_util import check_grads

        args = tuple(self.np.array(v, dtype=self.dtypes[dtype]).reshape(s) for v, s in inputs)
        modes = ("fwd",) if need == "forward" else ("rev",)
        check_grads(f, args, order=2 if need == "second" else 1, modes=modes)

    def named(self, message):
        return []


class TensorFlow:
    name, package, how = "tensorflow", "tensorflow-cpu", "`assertAllClose(*tf.test.compute_gradient(f, x))`, of the gradient for second derivatives"
    has = {"second"}

    def __init__(self):
        import tensorflow as tf

        self.tf = tf
        self.dtypes = {"f64": tf.float64, "f32": tf.float32, "bf16": tf.bfloat16}
        for same in ["tanh", "sin", "cos", "exp", "sqrt", "abs"]:
            setattr(self, same, getattr(tf, same))
        self.log, self.total, self.relu, self.stop = tf.math.log, tf.reduce_sum, tf.nn.relu, tf.stop_gradient

    def like(self, x, values, shape=None):
        return self.tf.reshape(self.tf.constant(values, dtype=x.dtype), shape or x.shape)

    def rows(self, x):
        return self.tf.reduce_sum(x, 1, keepdims=True)

    def columns(self, x):
        return self.tf.reduce_sum(x, 0)

    def turn(self, x):
        return self.tf.transpose(x)

    def at_least(self, x, floor):
        return self.tf.maximum(x, floor)

    def none(self, x):
        return None

    def is_bf16(self, x):
        return x.dtype == self.tf.bfloat16

    def dropout(self, x):
        return self.tf.nn.dropout(x, 0.4)

    def custom(self, forward, backward, forward_mode):
        @self.tf.custom_gradient
        def f(*xs):
            def gradient(g):
                gradients = backward(self, g, *xs)
                return gradients if len(gradients) > 1 else gradients[0]

            return forward(self, *xs), gradient

        return f

    def check(self, f, inputs, dtype, need):
        args = [self.tf.reshape(self.tf.constant(v, dtype=self.dtypes[dtype]), s) for v, s in inputs]
        checked = f
        if need == "second":

            def checked(x):
                with self.tf.GradientTape() as tape:
                    tape.watch(x)
                    y = f(x)
                return tape.gradient(y, x)

        given, expected = self.tf.test.compute_gradient(checked, args)
        self.tf.test.TestCase().assertAllClose(given, expected)

    def named(self, message):
        # Jacobians of one shape are compared as one array: input, output, number. Of others `a[1]` is that of the second input.
        where = re.search(r"not close where = \((.*?)\)\n", message, re.S)
        axes = [[int(i) for i in re.findall(r"\d+", axis)] for axis in re.findall(r"array\(\[(.*?)\]", where[1], re.S)] if where else []
        input_ = re.search(r"a\[(\d+)\]", message)
        if len(axes) == 3:
            return list(zip(axes[0], axes[2]))
        return [(int(input_[1]), i) for i in axes[1]] if input_ and len(axes) == 2 else []


ENGINES = {engine.name: engine for engine in [Torch, Jax, TensorFlow]}


def complaint(run):
    """What the checker says, or nothing."""
    try:
        run()
    except Exception as error:  # Whatever a checker raises is its complaint.
        return f"{type(error).__name__}: {error}"
    return None


def names(engine, case, message):
    """Whether a message names a number that is wrong, its input only, or nothing."""
    wrong_input, wrong_index = case.where if isinstance(case.where, tuple) else (case.where, None)
    indices = [index for input_, index in engine.named(message) if input_ == wrong_input]
    if any(index is not None and wrong_index in (None, index) for index in indices):
        return "element"
    return "input" if indices else "nothing"


def run(engine):
    rows = {}
    for case in FAULTS + RIGHT:
        started = time.time()
        is_fault = case.wrong is not None
        if case.need and case.need not in engine.has:
            rows[case.name] = {"verdict": "not there"}
            continue

        def check(backward):
            f = engine.custom(case.forward, backward, case.need == "forward") if backward else lambda *xs: case.forward(engine, *xs)
            return complaint(lambda: engine.check(f, case.inputs, case.dtype, case.need))

        said = check(case.wrong)
        if is_fault:
            verdict = "missed" if said is None else "either way" if check(case.right) else "caught"
        else:
            verdict = "passed" if said is None else "false alarm"
        row = {"verdict": verdict}
        if verdict == "caught":
            row["names"] = names(engine, case, said)
        if said is not None:
            row["said"] = said.replace(str(HERE), "")[:600]
        rows[case.name] = row
        print(f"{engine.name:10}  {case.name:48}  {verdict:12}  {row.get('names', ''):8}  {time.time() - started:6.1f} s", flush=True)
    version = importlib.metadata.version(engine.package).split("+")[0]
    write(RESULTS / f"{engine.name}.json", {"engine": engine.name, "version": version, "date": str(datetime.date.today()),
                                          "how": engine.how, "rows": rows})


def rust():
    """Both crates' rows come from the suite, which has no clock."""
    environment = {**os.environ, "BURN_GRADCHECK_ROWS": str(RESULTS)}
    subprocess.run(["cargo", "test", "--test", "suite", "gradcheck_compared"], check=True, env=environment, cwd=HERE.parents[2])
    for name in ["burn-gradcheck", "gradcheck"]:
        file = RESULTS / f"{name}.json"
        write(file, {**json.loads(file.read_text(encoding="utf-8")), "date": str(datetime.date.today())})


def write(file, value):
    part = file.with_suffix(".part")
    text = value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    part.write_text(text, encoding="utf-8")
    part.replace(file)


COLUMNS = [("burn-gradcheck", "burn-gradcheck"), ("torch", "torch"), ("jax", "JAX"), ("tensorflow", "TensorFlow"),
           ("gradcheck", "crate `gradcheck`")]
BEGIN, END = "<!-- comparison: written by comparison/compare.py table -->", "<!-- end of comparison -->"


def cell(row):
    verdict, named = row["verdict"], row.get("names")
    if verdict == "caught":
        return {"element": "caught, names the number", "input": "caught, names the input", "nothing": "caught"}[named]
    return {"not there": "–", "missed": "**missed**", "either way": "**complains either way**", "passed": "passed",
            "false alarm": "**false alarm**"}[verdict]


def table():
    engines = [json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name, _ in COLUMNS]
    for engine in engines:
        missing = {case.name for case in FAULTS + RIGHT} ^ set(engine["rows"])
        if missing:
            sys.exit(f"error: results/{engine['engine']}.json and compare.py have different cases: {sorted(missing)}; run it again")
    lines = ["| | " + " | ".join(f"{title} {engine['version']}" for (_, title), engine in zip(COLUMNS, engines)) + " |",
             "|---" * (len(COLUMNS) + 1) + "|"]
    count = lambda cases, verdicts: [sum(engine["rows"][case.name]["verdict"] in verdicts for case in cases) for engine in engines]
    there = lambda cases: [sum(engine["rows"][case.name]["verdict"] != "not there" for case in cases) for engine in engines]
    summary = lambda title, counts, of: lines.append(
        f"| **{title}** | " + " | ".join(f"**{n} of {m}**" for n, m in zip(counts, of)) + " |")
    summary("faults caught", count(FAULTS, {"caught"}), there(FAULTS))
    named = [sum(engine["rows"][case.name].get("names") == "element" for case in FAULTS) for engine in engines]
    summary("of these, the wrong number named", named, count(FAULTS, {"caught"}))
    lines += [f"| {case.name} | " + " | ".join(cell(engine["rows"][case.name]) for engine in engines) + " |" for case in FAULTS]
    summary("right functions passed", count(RIGHT, {"passed"}), there(RIGHT))
    lines += [f"| {case.name} | " + " | ".join(cell(engine["rows"][case.name]) for engine in engines) + " |" for case in RIGHT]
    dates = sorted({engine["date"] for engine in engines})
    how = "; ".join(f"{title} by {engine['how']}" for (_, title), engine in zip(COLUMNS, engines))
    lines += ["", f"Run on {' and '.join(dates)}: {how}."]
    readme = HERE.parent / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        sys.exit(f"error: {readme} must have the lines {BEGIN!r} and {END!r} once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    write(readme, f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def main(arguments):
    known = {**{name: lambda engine=engine: run(engine()) for name, engine in ENGINES.items()}, "rust": rust, "table": table}
    if not arguments or not set(arguments) <= set(known):
        sys.exit(f"usage: compare.py {' '.join(f'[{name}]' for name in known)}")
    if len(arguments) == 1:
        return known[arguments[0]]()
    for name in arguments:
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
